"""The training loop shared by all stages."""
