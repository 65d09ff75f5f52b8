"""Qwen2 and Qwen2.5: the language model of InternVL2-1B, of InternVL2.5-1B, 4B, 38B, 78B, and of most of InternVL3."""
