"""The pieces of our own adapters as rows of a table, so that they are restated as any other layout's linears are.

A piece is a set of rows of one linear with factors of its own (`models/lora.py`). `LINEAR.adapter.PIECE.lora_A` and
`lora_B` are the keys of its factors in a checkpoint; here it is called `LINEAR.adapter.PIECE.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_v2pe.checkpoint.hf.mappings import RowRun, TensorMapping
from megatron_v2pe.checkpoint.hf.table import MappingTable
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.models.lora_plan import LinearPiece

MARK = ".adapter."


@dataclass(frozen=True)
class RowsOfPiece:
    """Where the rows of a piece lie in its linear."""

    piece: LinearPiece
    of_linear: int
    """Rows of the whole linear."""

    def key_rows(self, rows: int) -> int:
        """Return the rows of the whole linear."""
        return self.of_linear

    def runs(self, rows: int) -> Iterator[RowRun]:
        """Yield the piece's part of each block."""
        block = self.piece.block or self.of_linear
        unit = block // self.piece.of
        for number in range(self.of_linear // block):
            own = self.piece.size * unit
            yield RowRun(number * block + self.piece.begin * unit, own, number * own)


def piece_name(linear: str, piece: str) -> str:
    """Return the name of a piece in a table."""
    return f"{linear}{MARK}{piece}.weight"


def piece_table(
    pieces: Mapping[str, Sequence[LinearPiece]], table: MappingTable, whole: Iterable[str] = (), source: str = "adapter"
) -> MappingTable:
    """Return the table of an adapter's pieces.

    Args:
        pieces: of every linear that has an adapter, by its name.
        table: of the model, in either layout.
        whole: keys of tensors that the adapter holds whole.
        source: for the error.

    Raises:
        CheckpointError: a linear or a tensor is not part of the model.
    """
    shapes = {row.key: row.key_shape for row in table.tensors}
    rows: list[TensorMapping] = []
    for linear, found in pieces.items():
        key = f"{linear}.weight"
        if key not in shapes:
            raise CheckpointError(f"{source}: {linear} has an adapter, and the model has no such linear")
        outputs, inputs = shapes[key]
        for piece in found:
            name, kind = piece_name(linear, piece.name), RowsOfPiece(piece, outputs)
            rows.append(TensorMapping(name, (piece.rows_of(outputs), inputs), key, kind))
    for key in whole:
        if key not in shapes:
            raise CheckpointError(f"{source}: {key} was trained in full, and the model has no such tensor")
        rows.append(TensorMapping(key, shapes[key], key))
    return MappingTable(tuple(rows))
