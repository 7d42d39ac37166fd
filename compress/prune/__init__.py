"""Structured pruning: removes whole channels, heads, and residual blocks."""
