"""InternViT-300M: the vision tower of InternVL2 up to 8B."""
