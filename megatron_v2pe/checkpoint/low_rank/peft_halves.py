"""The tensors of PEFT's `adapter_model.safetensors`, sorted by what their names say that they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_v2pe.checkpoint.low_rank.peft_rows import DELTA
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable

BEFORE = "base_model.model."
"""What PEFT puts before the names of a model's modules."""
_HALVES = re.compile(r"\.lora_([AB])(?:\.[\w-]+)?\.weight$")
_SAVED = re.compile(r"\.modules_to_save(?:\.[\w-]+)?(?=\.)")
_BASE_LAYER = re.compile(r"(?:\.token_adapter)?\.base_layer(?=\.)")
_DELTA = re.compile(re.escape(DELTA) + r"(?:\.[\w-]+)?$")
_ORIGINAL = ".original_module."
_OTHERS = (".lora_magnitude_vector", ".lora_embedding_", ".lora_bias", "lora_B.bias")


@dataclass(frozen=True)
class Halves:
    """The tensors of an adapter as they lie in a file: `down` and `up` by module, and tensors that stand whole."""

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Rows of single tokens, by module of an embedding or a head."""


def halves_of(tensors: Mapping[str, Tensor], source: str) -> Halves:
    """Sort the tensors of a file by what they are.

    Raises:
        CheckpointError: a tensor of another kind of adapter, one half without the other, or a value that is no number.
    """
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        shown = f"{source}: {printable(name)[:200]}"
        if other := next((mark for mark in _OTHERS if mark in name), None):
            raise CheckpointError(
                f"{shown}: {other.strip('._')} belongs to another kind of adapter than LoRA on linears"
            )
        if not tensor.dtype.is_floating_point:
            raise CheckpointError(f"{shown} is {tensor.dtype}, expected a floating-point type")
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f"{shown}: {count} of {tensor.numel()} values are NaN or infinite")
        short = name.removeprefix(BEFORE)
        if _ORIGINAL in short:  # the base's own values beside trained ones
            continue
        if (module := _DELTA.sub("", short)) != short:
            rows[module] = tensor
            continue
        half = _HALVES.search(short)
        if half is None:
            whole[_BASE_LAYER.sub("", _SAVED.sub("", short))] = tensor
            continue
        module, side = short[: half.start()], down if half[1] == "A" else up
        if module in side:
            raise CheckpointError(f"{shown}: a second lora_{half[1]} of {printable(module)}: adapters of two names")
        side[module] = tensor
    for one, other, letters in ((down, up, "AB"), (up, down, "BA")):
        if alone := sorted(one.keys() - other.keys()):
            raise CheckpointError(
                f"{source}: {printable(alone[0])[:200]}: lora_{letters[0]} without lora_{letters[1]}, as in "
                f"{len(alone)} of {len(one)} modules: the file is not whole, copy it again"
            )
    if not down and not whole and not rows:
        raise CheckpointError(f"{source}: holds no adapter: none of its {len(tensors)} tensors is a lora_A")
    return Halves(down, up, whole, rows)
