"""Structured pruning: whole channels go, and the network becomes really smaller."""
