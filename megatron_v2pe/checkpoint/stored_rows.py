"""Rows of the vocabulary's tables that a checkpoint with adapters holds of them: those of new tokens alone.

All other rows are the base's, to the bit, and learn nothing: the gradient of each is zero, so that an optimizer's
moments of it are zero (`train/new_rows.py`). A checkpoint therefore holds of every tensor in the shape of a table only
some rows. What reads it back is given the rest: of weights the rows that the model has, of moments zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_v2pe.checkpoint.folder import AVERAGED
from megatron_v2pe.checkpoint.hf.table import TABLES
from megatron_v2pe.checkpoint.parts import HeldPart, held_parts
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

_WEIGHTS = ("fp32_param.", "param.", "master_param.")
"""How the keys of an optimizer's copies of weights go on behind `optimizer.state.`; all others are moments."""
_STATE = "optimizer.state."


def table_of(key: str) -> str | None:
    """Return the table in whose shape a tensor of a checkpoint is, by its key; None: it is another tensor."""
    return next((table for table in TABLES if key == table or key.endswith(f".{table}")), None)


def cut_to_rows(parts: Iterable[ShardedTensor], rows: range) -> list[ShardedTensor]:
    """Return parts of tensors, of the vocabulary's tables and what has their shape the part within some rows alone.

    Args:
        parts: that a rank would write.
        rows: which rows a checkpoint holds; they are its rows 0, 1 and so on.
    """
    found: list[ShardedTensor] = []
    for part in parts:
        if table_of(part.key) is None:
            found.append(part)
            continue
        assert part.data is not None and part.prepend_axis_num == 0, part.key
        begin, held = part.global_offset[0], part.data.shape[0]
        low, high = max(begin, rows.start), min(begin + held, rows.stop)
        if low < high:
            values = part.data[low - begin : high - begin]
            shape, offset = (len(rows), *part.global_shape[1:]), (low - rows.start, *part.global_offset[1:])
            shapes = {"local_shape": tuple(values.shape), "global_shape": shape, "global_offset": offset}
            found.append(replace(part, data=values, axis_fragmentations=None, **shapes))
    return found


class RowsReader(TorchDistReader):
    """Reads a checkpoint that holds some rows of the tables as if it held all of them."""

    def __init__(self, reader: TorchDistReader, rows: range, vocabulary: int, held: Iterable[HeldPart]) -> None:
        """Take what reads the checkpoint.

        Args:
            reader: of the vetted folder.
            rows: that it holds.
            vocabulary: rows of the whole tables.
            held: the parts of the tables that this rank's stage has, with the base's values.
        """
        tensors = dict(reader.tensors)
        self._cut = {key for key, entry in tensors.items() if table_of(key) and entry.size[0] == len(rows)}
        for key in self._cut:
            tensors[key] = replace(tensors[key], size=(vocabulary, *tensors[key].size[1:]))
        super().__init__(reader.folder, tensors, reader.checksums)
        self._inner, self._rows = reader, rows
        self._held: Mapping[str, HeldPart] = {part.key: part for part in held}

    def read(self, key: str, begin: tuple[int, ...], sizes: tuple[int, ...], target: Tensor | None = None) -> Tensor:
        """Read a part of a tensor; for arguments and errors see `TorchDistReader.read`."""
        if key not in self._cut:
            return super().read(key, begin, sizes, target)
        out = torch.zeros(sizes, dtype=self.tensors[key].dtype) if target is None else target
        if _is_weight(key):
            place = self._held[str(table_of(key))]
            first = begin[0] - place.begin[0]
            assert first >= 0 and first + sizes[0] <= place.view.shape[0], (key, begin, sizes, place.begin)
            out.copy_(place.view[first : first + sizes[0]])
        else:
            out.zero_()
        low, high = max(begin[0], self._rows.start), min(begin[0] + sizes[0], self._rows.stop)
        if low < high:
            stored = (low - self._rows.start, *begin[1:])
            self._inner.read(key, stored, (high - low, *sizes[1:]), out[low - begin[0] : high - begin[0]])
        return out


def reader_of_all_rows(reader: TorchDistReader, model: nn.Module, rows: range) -> RowsReader:
    """Return what reads whole tables of a checkpoint that holds some rows of them; every rank calls this.

    Args:
        reader: of the vetted folder.
        model: this rank's stage, with the base's values. They are copied to the host: an optimizer whose state is made
            to be loaded takes a step with values that mean nothing.
        rows: that the checkpoint holds.
    """
    found = (part for _, parts in held_parts(model) for part in parts if part.key in TABLES)
    held = [HeldPart(part.key, part.view.to("cpu", copy=True), part.begin) for part in found]
    behind = max((part.begin[0] + part.view.shape[0] for part in held), default=0)
    vocabulary = torch.tensor(behind, device=next(model.parameters()).device)
    dist.all_reduce(vocabulary, op=dist.ReduceOp.MAX)
    return RowsReader(reader, rows, int(vocabulary.item()), held)


def _is_weight(key: str) -> bool:
    return key in TABLES or key.startswith(AVERAGED) or key.startswith(tuple(_STATE + name for name in _WEIGHTS))
