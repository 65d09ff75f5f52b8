"""InternViT: the vision towers of InternVL, 300M (LayerNorm) and 6B (RMSNorm, normalised queries and keys)."""
