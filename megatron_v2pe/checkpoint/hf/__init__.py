"""HF checkpoints to Megatron-Core checkpoints and back, tensor by tensor."""
