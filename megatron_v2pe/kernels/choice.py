"""Whether an operation runs as a Triton kernel or in its plain form: decided by the tensor's device and type alone.

One switch overrules it: the environment variable `MEGATRON_V2PE_KERNELS=plain` for a whole run, `forced` in a test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from megatron_v2pe.errors import ConfigError

VARIABLE = "MEGATRON_V2PE_KERNELS"
"""`auto` (the default) or `plain`."""
_TYPES = (torch.float32, torch.bfloat16, torch.float16)

_forced: str | None = None


def use_triton(*tensors: Tensor | None) -> bool:
    """Tell whether these tensors are worked on by a Triton kernel.

    That is so on CUDA, where triton is installed, for float32, bf16 and fp16: kernels compute in float32. Everything
    else takes the plain form.

    Raises:
        ConfigError: the environment variable says neither `auto` nor `plain`.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.dtype not in _TYPES for tensor in present):
        return False
    return triton_on("cuda" if all(tensor.is_cuda for tensor in present) else "cpu")


def triton_on(device: str) -> bool:
    """Tell whether kernels run on a kind of device; it raises what `use_triton` raises."""
    if _forced is not None:
        return _forced == "triton"
    return device == "cuda" and _wanted()


@lru_cache(maxsize=1)
def _wanted() -> bool:
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in ("auto", "plain"):
        raise ConfigError(f"{VARIABLE}={asked} is none of auto, plain")
    return asked == "auto" and find_spec("triton") is not None


@contextmanager
def forced(form: str) -> Iterator[None]:
    """Run one form whatever the device: `plain`, or `triton` (on the CPU in Triton's interpreter)."""
    global _forced
    assert form in ("plain", "triton"), form
    before, _forced = _forced, form
    try:
        yield
    finally:
        _forced = before
