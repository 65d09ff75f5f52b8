"""SEED-Bench: multiple choice about images and middle frames of videos."""

ORDER = 60
"""Place of the family in lists."""
