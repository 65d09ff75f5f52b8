"""The conversation template of Nous-Hermes-2 (InternVL2-40B); the language model is Yi, in `families/llama/`."""
