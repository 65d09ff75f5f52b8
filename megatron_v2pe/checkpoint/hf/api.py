"""The two conversions, for programs; `tools/convert_checkpoint.py` is the command line to them."""

from __future__ import annotations

from megatron_v2pe.checkpoint.hf.hf_to_mcore import hf_to_mcore
from megatron_v2pe.checkpoint.hf.mcore_to_hf import mcore_to_hf

__all__ = ["hf_to_mcore", "mcore_to_hf"]
