"""A run directory as one object; needs no torch."""
