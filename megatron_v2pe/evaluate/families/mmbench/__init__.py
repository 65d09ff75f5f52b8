"""MMBench and CCBench: multiple choice, each question asked with its options in turn."""

ORDER = 50
"""Place of the family in lists."""
