"""The two conversions, for programs; `tools/convert_checkpoint.py` is the command line to them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from megatron_v2pe.checkpoint.hf import hf_to_mcore as _forward
from megatron_v2pe.checkpoint.hf import mcore_to_hf as _backward


def hf_to_mcore(source: Path, folder: Path, overwrite: bool = False, *, refuse_non_finite: bool = True) -> None:
    """Convert an HF InternVL2 folder to a Megatron-Core checkpoint that any tensor and pipeline layout loads.

    Tensors go over one at a time and types stay as they are. Config, tokenizer and every other file travel in `hf/`,
    with a record of how the weights were cut into files. `folder` appears when it is complete, or not at all.

    Args:
        source: HF folder with `config.json` and safetensors.
        folder: checkpoint folder to create.
        overwrite: replace a checkpoint that is there.
        refuse_non_finite: refuse weights that are NaN or infinite; otherwise they are counted in a warning.

    Raises:
        ConfigError: another architecture, or a `config.json` that cannot be used.
        CheckpointError: weights missing, left over, damaged, a pickle, or of another shape; file or tensor is named.
    """
    _forward.convert(source, folder, overwrite, refuse_non_finite)


def mcore_to_hf(
    folder: Path,
    target: Path,
    *,
    rope_pos_id_version: str | None = None,
    rope_pos_id_stride: str | int | float | Fraction | None = None,
    overwrite: bool = False,
    dtype: str | None = None,
    verify: bool = True,
    refuse_non_finite: bool = True,
) -> None:
    """Convert a Megatron-Core checkpoint, converted or trained in any layout, to an HF folder.

    Without options, what `hf_to_mcore` made goes back byte for byte, but for a `config.json` with the scaling `v2pe`:
    the published code saves it and refuses to load it, so it comes back in a form that loads. A training
    checkpoint also writes into `config.json` what it was trained with: V2PE settings, conversation template, how images
    are cut into tiles. Its optimizer state stays behind.

    Args:
        folder: a checkpoint folder, or that of a training run, whose newest checkpoint is taken.
        target: HF folder to create.
        rope_pos_id_version: write this version instead.
        rope_pos_id_stride: write this stride instead: `64`, `1/2`, `0.5`.
        overwrite: replace an HF folder that is there.
        dtype: `bf16`, `fp32` or `fp16`; by default every tensor as the original HF checkpoint had it.
        verify: compare what is read with the folder's checksums.
        refuse_non_finite: as of `hf_to_mcore`; a type that is too small for a value makes it infinite.

    Raises:
        ConfigError: V2PE settings that do not go together, or an unknown `dtype`.
        CheckpointError: the checkpoint is incomplete, damaged, refused or of another model; nothing is written.
    """
    export = _backward.Export(rope_pos_id_version, rope_pos_id_stride, dtype)
    _backward.convert(folder, target, overwrite, export, verify, refuse_non_finite)
