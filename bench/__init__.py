"""Comparisons with other tools; each writes its own file under bench/results."""
