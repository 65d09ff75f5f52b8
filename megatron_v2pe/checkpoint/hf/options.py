"""What a user may ask of any conversion, whatever its direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch

from megatron_v2pe.checkpoint.hf.budget import DEFAULT_LIMIT, Budget, bytes_in
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.native_config import LAYOUTS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """What is asked; None keeps what the source says."""

    overwrite: bool = False
    """Replace a folder of the same kind that is there."""
    refuse_non_finite: bool = True
    dtype: str | None = None
    """`bf16`, `fp32` or `fp16`; None: every tensor as the source has it."""
    memory_limit: str | None = None
    """Bytes above the interpreter, at most; None: `2GiB`."""
    max_shard_size: str | None = None
    """Bytes of a file of weights; None: as the original was cut, or `5GB` where nothing is known of that."""
    layout: str | None = None
    """`original` or `native`; None: the source's."""
    verify: bool = True
    """Compare what is read of a Megatron checkpoint with its checksums."""
    rope_pos_id_version: str | None = None
    rope_pos_id_stride: str | int | float | Fraction | None = None
    manifest: bool | None = None
    """Whether an HF folder gets a `manifest.json`; None: unless it is the original's to the byte."""
    weights: str = "model"
    """`ema` takes of a training checkpoint the moving average of what has learned, `model` the weights."""
    language_model: str | None = None
    """`model_type` of the language model in an original folder that is made of a native one: `internlm2`."""

    def __post_init__(self) -> None:
        """Refuse what nobody can do.

        Raises:
            ConfigError: an unknown type or layout, or a size that is none.
        """
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ConfigError(f"layout {self.layout!r} is none of {', '.join(LAYOUTS)}")
        if self.weights not in ("model", "ema"):
            raise ConfigError(f"weights {self.weights!r} is none of model, ema")
        if self.largest_file is not None and self.largest_file < 1:
            raise ConfigError(f"--max-shard-size {self.max_shard_size!r}: expected at least one byte")
        assert self.budget

    @property
    def budget(self) -> Budget:
        """Sizes of the buffers."""
        return Budget(bytes_in(self.memory_limit or DEFAULT_LIMIT, "--memory-limit"))

    @property
    def largest_file(self) -> int | None:
        """Bytes of a file of weights, None where nothing is asked."""
        return None if self.max_shard_size is None else bytes_in(self.max_shard_size, "--max-shard-size")

    @property
    def wanted_dtype(self) -> torch.dtype | None:
        """The type asked for."""
        return None if self.dtype is None else DTYPES[self.dtype]

    def identity(self) -> Mapping[str, Any]:
        """Return what decides about the bytes that are written, as plain values."""
        content = asdict(self)
        del content["overwrite"]
        stride = content["rope_pos_id_stride"]
        return {**content, "rope_pos_id_stride": None if stride is None else str(stride)}
