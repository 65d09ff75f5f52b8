"""Megatron-style training backend for vision-language models with variable visual position encoding."""

from megatron_v2pe.version import __version__

__all__ = ["__version__"]
