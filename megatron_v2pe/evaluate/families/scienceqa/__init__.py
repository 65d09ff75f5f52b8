"""ScienceQA: multiple choice from school lessons, with an image."""

ORDER = 20
"""Place of the family in lists."""
