"""Nous-Hermes-2: the language model of InternVL2-40B. Only its conversation template is here, not the model."""
