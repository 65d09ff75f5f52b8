"""MVBench and Video-MME: multiple choice about videos."""

ORDER = 80
"""Place of the family in lists."""
