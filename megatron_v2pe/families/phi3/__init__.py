"""Phi-3: the language model of InternVL2-4B. Only its conversation template is here, not the model."""
