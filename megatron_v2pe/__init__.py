"""Megatron-style training backend for vision-language models with variable visual position encoding."""

from megatron_v2pe.device import jit_on_cpu
from megatron_v2pe.version import __version__

jit_on_cpu.install()  # before anything imports Megatron-Core

__all__ = ["__version__"]
