"""MM-NIAH: needles in long documents with images, and its variant at 128K to 1M tokens."""

ORDER = 90
"""Place of the family in lists."""
