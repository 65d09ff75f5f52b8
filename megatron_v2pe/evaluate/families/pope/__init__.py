"""POPE: is something in the photo, yes or no."""

ORDER = 30
"""Place of the family in lists."""
