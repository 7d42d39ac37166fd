"""A folder or zip with everything to use a network elsewhere, and to check it there."""
