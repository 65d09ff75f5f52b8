"""The conversions, for programs; `tools/convert_checkpoint.py` is the command line to them."""

from __future__ import annotations

from megatron_v2pe.checkpoint.hf.hf_to_mcore import hf_to_mcore
from megatron_v2pe.checkpoint.hf.mcore_to_hf import mcore_to_hf
from megatron_v2pe.checkpoint.hf.repack import hf_to_hf, mcore_to_mcore

__all__ = ["hf_to_hf", "hf_to_mcore", "mcore_to_hf", "mcore_to_mcore"]
