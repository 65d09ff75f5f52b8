"""VQAv2, OK-VQA, TextVQA, VizWiz, GQA and OCR-VQA: open questions about one photo each."""

ORDER = 70
"""Place of the family in lists."""
