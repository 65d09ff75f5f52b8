"""What measurements compare with: peak memory of tensors, drawn lengths, the published packing and positions."""
