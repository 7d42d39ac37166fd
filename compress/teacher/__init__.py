"""Stage teacher."""
