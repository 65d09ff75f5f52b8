"""Llama 2, Llama 3 and Yi: the language models of InternVL2-40B and 76B. Their layers are the usual decoder's."""
