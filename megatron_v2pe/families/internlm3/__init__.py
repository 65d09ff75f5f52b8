"""InternLM3: the language model of InternVL3-9B. Its layers are the usual decoder's, its names of tensors Llama's."""
