"""Data sets: where their files come from, their three splits, and the transform they share."""
