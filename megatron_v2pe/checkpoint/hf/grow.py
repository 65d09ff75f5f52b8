"""A checkpoint becomes an HF folder that has further tokens; nothing is trained.

What a run does with `model.add_tokens` is done here to a folder: rows of new tokens are means of the rows of their
pieces, all other tensors are copied. It serves those who want the tokens before they train, such as adapters do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from megatron_v2pe.checkpoint.growth import Growth, grown_config
from megatron_v2pe.checkpoint.hf.grown_rows import grown_beside
from megatron_v2pe.checkpoint.hf.hf_to_mcore import open_folder
from megatron_v2pe.checkpoint.hf.mcore_to_hf import open_export
from megatron_v2pe.checkpoint.hf.open_source import grown_source
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.side_files import check_side_files
from megatron_v2pe.checkpoint.hf.to_hf import write_hf
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.trained import loadable, trained_config
from megatron_v2pe.models.config import InternVLConfig


def add_tokens(
    folder: Path,
    target: Path,
    growth_of: Callable[[Path, InternVLConfig], Growth],
    *,
    overwrite: bool = False,
    memory_limit: str | None = None,
) -> Growth:
    """Write an HF folder that is a checkpoint with further tokens, in the checkpoint's own layout and types.

    Args:
        folder: an HF folder, a Megatron checkpoint, or a run, whose newest checkpoint is taken.
        target: HF folder to create.
        growth_of: gives the new tokens, of the folder with the tokenizer and of the model.
        overwrite: replace an HF folder that is there.
        memory_limit: bytes above the interpreter, at most: `2GiB`.

    Returns:
        The new tokens.

    Raises:
        ConfigError: another architecture, or tokens that cannot be added.
        CheckpointError: the checkpoint is incomplete or damaged, or `target` exists.
        InUseError: another process writes to `target`.
    """
    options = Options(overwrite, memory_limit=memory_limit)
    place = find_checkpoint(folder, "checkpoint")
    source = open_folder(place.folder) if place.is_hf else open_export(folder, options)
    check_side_files(source.hf, source.model.llm.vocab_size)
    growth = growth_of(source.hf, source.model)
    config = grown_config(loadable(trained_config(place.folder)), growth)
    grown = grown_source(source, growth)
    tokens = {"new_tokens": [asdict(token) for token in growth.tokens]}
    write_hf(grown, target, options, "adding tokens", config, True, grown_beside(growth, grown.files), tokens)
    return growth
