"""Data sets: sources, splits, augmentation, and preprocessing."""
