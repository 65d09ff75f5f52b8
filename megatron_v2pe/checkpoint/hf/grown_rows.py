"""An open checkpoint's rows with those of new tokens, and the files beside weights that have these tokens.

Rows of a new token are the mean of the rows of its pieces, as `checkpoint/growth.py` gives them to a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.checkpoint.growth import Growth, grown_index, grown_side_files
from megatron_v2pe.checkpoint.hf.folder import FileLayout
from megatron_v2pe.checkpoint.hf.row_sources import RowsOfKey, RowSource
from megatron_v2pe.checkpoint.hf.side_files import SideFiles
from megatron_v2pe.checkpoint.hf.table import TABLES


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


def grown_beside(growth: Growth, files: FileLayout, first: SideFiles | None = None) -> SideFiles:
    """Return what writes the files beside weights with new tokens: the tokenizer's, and the index.

    Args:
        growth: the new tokens.
        files: how the grown weights are cut.
        first: what else is written beside the weights, before the tokens are added to it.
    """

    def write(origin: Path, written: Path, layout: str, config: Mapping[str, Any]) -> None:
        if first is not None:
            first(origin, written, layout, config)
        for name, content in {**grown_side_files(written, growth), **grown_index(written, files)}.items():
            (written / name).write_text(content, encoding="utf-8")

    return write
