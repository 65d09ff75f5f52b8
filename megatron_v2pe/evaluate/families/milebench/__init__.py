"""MileBench: 29 sets of questions about several images."""

ORDER = 100
"""Place of the family in lists."""
