"""Stage distill."""
