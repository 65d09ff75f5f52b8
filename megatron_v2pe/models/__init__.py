"""InternVL2 on Megatron-Core: configuration, layer specs, tower, projector, language model."""
