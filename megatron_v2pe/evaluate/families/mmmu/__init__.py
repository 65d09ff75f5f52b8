"""MMMU: college exam questions with up to seven images."""

ORDER = 40
"""Place of the family in lists."""
