"""Runs: the runner, keys, and folders of stages, single stages."""
