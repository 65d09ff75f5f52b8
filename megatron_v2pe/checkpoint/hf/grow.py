"""A checkpoint becomes an HF folder that has further tokens; nothing is trained.

What a run does with `model.add_tokens` is done here to a folder: rows of new tokens are means of the rows of their
pieces, all other tensors are copied. It serves those who want the tokens before they train, such as adapters do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.checkpoint.growth import TABLES, Growth, grown_config, grown_index, grown_layout, grown_side_files
from megatron_v2pe.checkpoint.hf.hf_to_mcore import open_folder
from megatron_v2pe.checkpoint.hf.mcore_to_hf import open_export
from megatron_v2pe.checkpoint.hf.open_source import OpenSource
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.row_sources import RowsOfKey, RowSource
from megatron_v2pe.checkpoint.hf.side_files import check_side_files
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.hf.to_hf import write_hf
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.trained import loadable, trained_config
from megatron_v2pe.models.config import InternVLConfig


class GrownRows:
    """Rows of a source as they are, and the vocabulary's tables with the rows of new tokens."""

    def __init__(self, source: RowSource, growth: Growth) -> None:
        """Take a source whose tables have `growth.rows_before` rows, or more that are padding."""
        self._source, self._growth = source, growth
        self._keys = {
            key: replace(rows, shape=(growth.rows, *rows.shape[1:])) if key in TABLES else rows
            for key, rows in source.keys.items()
        }

    @property
    def keys(self) -> Mapping[str, RowsOfKey]:
        """Type and shape of every tensor."""
        return self._keys

    def read(self, key: str, first_row: int, out: memoryview) -> None:
        """Fill `out` with rows of a tensor, see `RowSource.read`."""
        if key not in TABLES:
            self._source.read(key, first_row, out)
            return
        width, growth = self._keys[key].row_bytes, self._growth
        behind = first_row + len(out) // width
        stored = min(max(growth.rows_before - first_row, 0), behind - first_row)
        if stored:
            self._source.read(key, first_row, out[: stored * width])
        for row in range(max(first_row, growth.tokens[0].id), min(behind, growth.tokens[-1].id + 1)):
            part = out[(row - first_row) * width : (row - first_row + 1) * width]
            part[:] = memoryview(self._mean(key, growth.pieces[row]).view(torch.uint8).numpy())  # type: ignore[arg-type]

    def _mean(self, key: str, pieces: tuple[int, ...]) -> torch.Tensor:
        known = self._keys[key]
        wide = torch.promote_types(known.dtype, torch.float32)
        rows: list[torch.Tensor] = []
        for piece in pieces:
            content = bytearray(known.row_bytes)
            self._source.read(key, piece, memoryview(content))
            rows.append(torch.frombuffer(content, dtype=known.dtype).to(wide))
        return torch.stack(rows).mean(0).to(known.dtype)


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
    grown = _grown(source, growth)

    def side_files(origin: Path, written: Path, layout: str, stated: Mapping[str, Any]) -> None:
        for name, content in {**grown_side_files(origin, growth), **grown_index(origin, grown.files)}.items():
            (written / name).write_text(content, encoding="utf-8")

    tokens = {"new_tokens": [asdict(token) for token in growth.tokens]}
    write_hf(grown, target, options, "adding tokens", config, True, side_files, tokens)
    return growth


def _grown(source: OpenSource, growth: Growth) -> OpenSource:
    """Return an open checkpoint whose tables have rows for new tokens."""
    model = growth.model(source.model)
    files = grown_layout(source.files, source.table, growth)
    table = mapping_table(model, source.layout, files.places())
    return replace(source, model=model, table=table, files=files, rows=GrownRows(source.rows, growth), manifest=None)
