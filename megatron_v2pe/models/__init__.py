"""InternVL on Megatron-Core: configuration, layer specs, tower, projector, language model."""
