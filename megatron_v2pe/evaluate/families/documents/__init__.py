"""ChartQA, DocVQA, InfoVQA and AI2D: questions about one chart, page, infographic or diagram each."""

ORDER = 10
"""Place of the family in lists."""
