"""Long-VQA: questions of 17 data sets, each among many other images."""

ORDER = 110
"""Place of the family in lists."""
