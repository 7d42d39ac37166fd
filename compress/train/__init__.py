"""The one training loop, used by every stage that trains."""
