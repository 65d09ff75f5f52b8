"""Qwen3, the dense models: the language model of InternVL3.5-1B, 2B, 4B, 8B, 14B and 38B."""
