"""Rows of a base with an adapter merged into them, a stretch at a time: conversions read them as any other source's.

A changed weight is added up in float32 (float64 where it is stored so) and rounded once, to the type it is written in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_v2pe.checkpoint.hf.row_sources import RowsOfKey, RowSource
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter, hf_rows
from megatron_v2pe.checkpoint.low_rank.change import LowRankChange

_AT_ONCE = 4 << 20
"""Bytes of float32 rows that are added up at once."""


@dataclass(frozen=True)
class _Term:
    """What changes the rows of a Megatron-Core tensor."""

    rows: Tensor
    """int64 [key rows], each one's row of `change` or `whole`; -1: the row stays as it is."""
    change: LowRankChange | None = None
    whole: Tensor | None = None
    weight: float = 1.0
    is_of_tokens: bool = False
    """Whether `whole` are rows of tokens: they take the place of the base's once, however many adapters have them."""


class MergedRows:
    """The rows of another source with adapters merged into them."""

    def __init__(
        self, source: RowSource, adapters: Sequence[tuple[Adapter, float]], dtype: torch.dtype | None = None
    ) -> None:
        """Remember what is added to which rows.

        Args:
            source: the base's rows.
            adapters: each with the factor its changes are multiplied by. Their shapes fit the base, which has rows
                for their tokens.
            dtype: type in which changed rows are given; None: as the base has them.
        """
        self._source = source
        self._terms: dict[str, list[_Term]] = {}
        for adapter, weight in adapters:
            for mapping in adapter.table.tensors:
                if mapping.copy:
                    continue
                change, whole = adapter.changes.get(mapping.name), adapter.whole.get(mapping.name)
                if change is None and whole is None:
                    continue
                self._terms.setdefault(mapping.key, []).append(_Term(hf_rows(mapping), change, whole, weight))
            if adapter.rows is not None:
                for key, values in adapter.rows.tables.items():
                    places = adapter.rows.of_key(source.keys[key].shape[0])
                    self._terms.setdefault(key, []).insert(0, _Term(places, whole=values, is_of_tokens=True))
        self._keys = dict(source.keys)
        for key in self._terms:
            self._keys[key] = replace(self._keys[key], dtype=dtype or self._keys[key].dtype)

    @property
    def keys(self) -> Mapping[str, RowsOfKey]:
        """Type and shape of every tensor."""
        return self._keys

    def read(self, key: str, first_row: int, out: memoryview) -> None:
        """Fill `out` with rows of a tensor, see `RowSource.read`."""
        if key not in self._terms:
            self._source.read(key, first_row, out)
            return
        wanted, stored = self._keys[key], self._source.keys[key]
        columns = math.prod(wanted.shape[1:])
        rows = len(out) // wanted.row_bytes
        step = max(1, _AT_ONCE // (4 * max(1, columns)))
        for begin in range(0, rows, step):
            count = min(step, rows - begin)
            content = memoryview(bytearray(count * stored.row_bytes))
            self._source.read(key, first_row + begin, content)
            values = torch.frombuffer(content, dtype=stored.dtype).view(count, columns)
            values = values.to(torch.promote_types(stored.dtype, torch.float32))
            terms = self._terms[key]
            base = values if len(terms) == 1 and terms[0].weight == 1 else values.clone()
            for term in terms:
                _apply(term, values, base, first_row + begin)
            result = values.to(wanted.dtype).contiguous().view(torch.uint8).numpy().reshape(-1)
            out[begin * wanted.row_bytes : (begin + count) * wanted.row_bytes] = memoryview(result)  # type: ignore[arg-type]


def _apply(term: _Term, values: Tensor, base: Tensor, first_row: int) -> None:
    """Change rows [n, columns] of a tensor, `first_row` and those behind it.

    What was trained in full counts as its difference from the base's rows, so that factors hold for it, and so that
    what other adapters change beside it stays; where it is all that changes, it takes their place bit for bit. Rows of
    tokens come first and take their place in any case: adapters that have the same ones must not add them up.
    """
    places = torch.full((len(values),), -1)
    known = term.rows[first_row : first_row + len(values)]
    places[: len(known)] = known  # rows beyond are a vocabulary's padding
    mine = places >= 0
    if not mine.any():
        return
    if term.whole is not None:
        new = term.whole.reshape(term.whole.shape[0], -1)[places[mine]].to(values.dtype)
        if base is values or term.is_of_tokens:
            values[mine, : new.shape[1]] = new
        else:
            values[mine, : new.shape[1]] += term.weight * (new - base[mine, : new.shape[1]])
        return
    assert term.change is not None
    up, down = term.change.up[places[mine]].to(values.dtype), term.change.down.to(values.dtype)
    values[mine, : down.shape[1]] += (up @ down) * (term.change.scaling * term.weight)
