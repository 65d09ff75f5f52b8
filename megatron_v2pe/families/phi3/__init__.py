"""Phi-3: the language model of InternVL2-4B. One projection makes queries, keys and values, one makes gate and up."""
