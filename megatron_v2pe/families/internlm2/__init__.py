"""InternLM2: the language model of InternVL2-2B, 8B and 26B. Its layers are the usual decoder's."""
