"""The conversation template that InternVL2.5, 3 and 3.5 share; it belongs to no language model of its own."""
