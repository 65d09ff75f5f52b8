"""The linears of a model that may have an adapter, and which Hugging Face tensor each piece of them is.

PEFT has one pair of factors for every linear of a Hugging Face model. One linear here holds the rows of one, two or
three of those: the pieces of an adapter follow the table of the model (`table.py`), so that adapters go from and to
PEFT without loss, and train the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.checkpoint.hf.mappings import Interleaved, Stacked, TensorMapping
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.adapter_targets import PARTS, TARGETS, is_target
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.lora_plan import WHOLE, LinearPiece

DIVISIONS = ("auto", "fused", "split")
"""How a linear is divided into pieces: as the checkpoint's own layout has it, not at all, or as far as it goes."""
_HALVES = ("gate", "up")
PIECES = ("q", "k", "v", *_HALVES)
"""Names of pieces that are not a whole linear; they may be targets."""
_HF_LINEARS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv_proj": "linear_qkv",
    "wqkv": "linear_qkv",
    "qkv": "linear_qkv",
    "o_proj": "linear_proj",
    "wo": "linear_proj",
    "proj": "linear_proj",
    "gate_proj": "gate",
    "w1": "gate",
    "up_proj": "up",
    "w3": "up",
    "gate_up_proj": "linear_fc1",
    "fc1": "linear_fc1",
    "down_proj": "linear_fc2",
    "w2": "linear_fc2",
    "fc2": "linear_fc2",
    "all": "attention,mlp",
    "all-linear": "attention,mlp",
}
"""Linears of Hugging Face models, as the `target_modules` of other programs name them -> the target here."""


@dataclass(frozen=True)
class PieceRow:
    """A piece of a linear, and the Hugging Face weight that holds the same rows."""

    piece: LinearPiece
    row: TensorMapping | None
    """None where the chosen division is not that of the layout, so that no tensor holds just these rows."""
    shape: tuple[int, int]
    """Rows and columns of the piece in the whole model."""


def linears_of(model: InternVLConfig, layout: str, division: str = "auto") -> dict[str, tuple[PieceRow, ...]]:
    """Return every linear of a model that may have an adapter, by its name, with its pieces.

    Args:
        model: the model.
        layout: `original` or `native`: whose tensors the division `auto` follows.
        division: one of `DIVISIONS`.

    Returns:
        `language_model.decoder.layers.0.self_attention.linear_qkv` and so on -> pieces by the order of their rows.

    Raises:
        ConfigError: the model has no table.
    """
    assert division in DIVISIONS, division
    rows: dict[str, list[TensorMapping]] = {}
    for mapping in mapping_table(model, layout).tensors:
        linear, _, kind = mapping.key.rpartition(".")
        if kind == "weight" and linear.split(".")[-1] in TARGETS:
            rows.setdefault(linear, []).append(mapping)
    if division == "auto":
        return {linear: tuple(_as_stored(found)) for linear, found in rows.items()}
    if division == "fused":
        return {linear: (_made(WHOLE, found[0], len(found) == 1),) for linear, found in rows.items()}
    return {linear: tuple(_apart(linear, found, model)) for linear, found in rows.items()}


def _as_stored(found: Sequence[TensorMapping]) -> Iterator[PieceRow]:
    if len(found) == 1:
        yield _made(WHOLE, found[0])
        return
    for row in found:
        if isinstance(row.rows, Interleaved):
            yield _made(_of_group(row.rows, row.rows.parts[0], row.key_rows), row)
        else:
            assert isinstance(row.rows, Stacked) and row.rows.parts == len(_HALVES), row
            yield _made(_half(row.rows.part), row)


def _apart(linear: str, found: Sequence[TensorMapping], model: InternVLConfig) -> Iterator[PieceRow]:
    first = found[0]
    gated = linear.startswith("language_model.") and linear.endswith("linear_fc1")
    if len(found) > 1:
        yield from _as_stored(found)
    elif isinstance(first.rows, Interleaved):
        yield from (_made(_of_group(first.rows, part, first.key_rows), first, False) for part in "qkv")
    elif gated and first.key_rows == 2 * model.llm.ffn_hidden_size:
        yield from (_made(_half(part), first, False) for part in range(len(_HALVES)))
    else:
        yield _made(WHOLE, first)


def _made(piece: LinearPiece, row: TensorMapping, is_whole: bool = True) -> PieceRow:
    """Return a piece of the linear that a row fills in whole or in part; `is_whole`: with just the piece's rows."""
    return PieceRow(piece, row if is_whole else None, (piece.rows_of(row.key_rows), row.shape[1]))


def _of_group(rows: Interleaved, part: str, key_rows: int) -> LinearPiece:
    begin, heads = rows.groups.place_in_group(part)
    return LinearPiece(part, begin, heads, rows.groups.shared + 2, key_rows // rows.groups.all_groups)


def _half(part: int) -> LinearPiece:
    return LinearPiece(_HALVES[part], part, 1, len(_HALVES))


def chosen(linears: Mapping[str, tuple[PieceRow, ...]], targets: Sequence[str]) -> dict[str, tuple[PieceRow, ...]]:
    """Return the linears that targets name, each with those of its pieces that they name.

    Args:
        linears: all of a model, of `linears_of`.
        targets: groups, linears or pieces (`attention`, `linear_qkv`, `q`), alone or behind a part of the model and a
            dot (`language_model.q`).

    Raises:
        ConfigError: a target is unknown, with the nearest ones, or nothing of this model is it.
    """
    found: dict[str, set[str]] = {}
    for target in targets:
        part, _, name = target.rpartition(".")
        matched = False
        if name in PIECES and part in ("", *PARTS):
            wanted, among = {name}, {n: rows for n, rows in linears.items() if part in ("", n.split(".")[0])}
        elif name not in TARGETS or part not in ("", *PARTS):
            known = [*TARGETS, *PIECES, *(f"{one}.{group}" for one in PARTS for group in (*TARGETS, *PIECES))]
            meant = _HF_LINEARS.get(name.lower())
            near = did_you_mean(target, known) if meant is None else f"; what Hugging Face calls so is {meant} here"
            raise ConfigError(
                f"adapter.targets: {printable(target)[:100]!r} is unknown{near}; there are "
                f"{', '.join((*TARGETS, *PIECES))}, each also behind {', '.join(f'{one}.' for one in PARTS)}"
            )
        else:
            wanted, among = None, {n: rows for n, rows in linears.items() if is_target(n, target)}
        for linear, rows in among.items():
            pieces = {row.piece.name for row in rows} & (wanted or {row.piece.name for row in rows})
            if pieces:
                found.setdefault(linear, set()).update(pieces)
                matched = True
        if not matched:
            there = sorted({row.piece.name for rows in linears.values() for row in rows} - {WHOLE.name})
            raise ConfigError(
                f"adapter.targets: {target!r} matches no linear of this model; its linears are "
                f"{', '.join(sorted({_short(name) for name in linears}))}, pieces of them {', '.join(there) or 'none'}"
                + (": adapter.pieces split makes pieces of joint projections" if name in PIECES else "")
            )
    return {
        linear: tuple(row for row in rows if row.piece.name in found[linear])
        for linear, rows in linears.items()
        if linear in found
    }


def _short(name: str) -> str:
    return f"{name.split('.')[0]}.{name.split('.')[-1]}"
