"""Attention over packed documents: the kernels, what one rank computes, and what context-parallel ranks exchange."""
