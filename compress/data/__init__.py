"""Datasets: sources, splits, augmentation, and preprocessing."""
