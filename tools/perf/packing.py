"""How many packs an epoch becomes, beside the fewest possible and the published way of packing, and how even they are.

The lengths are those of `--lengths`, a CSV file with the columns tokens and tiles; without it those of the tests'
shared material, and where that is absent they are drawn from `megatron_v2pe.workshop.measuring.lengths.drawn_lengths`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.data.packing.balance import deal, round_robin
from megatron_v2pe.data.packing.online import BestFitPacker
from megatron_v2pe.data.packing.planner import PackBudgets, PackTable, plan_packs
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.workshop.measuring.lengths import Lengths, drawn_lengths, read_lengths
from megatron_v2pe.workshop.measuring.reference_packing import reference_packs, two_budget_bound

DESCRIPTION = "packs of an epoch planned from lengths: their number, the time it takes, and how evenly they are dealt"


@dataclass(frozen=True)
class _Item:
    num_tokens: int
    num_tiles: int


def run(argv: list[str]) -> dict[str, Any]:
    """Plan, compare and deal; see `--help` for the arguments."""
    arguments = _parser().parse_args(argv)
    (tokens, tiles), source = _lengths(arguments)
    budgets = PackBudgets(arguments.max_tokens, arguments.max_tiles)
    scarce = PackBudgets(arguments.max_tokens, arguments.scarce_tiles)
    fits = (tokens <= budgets.max_tokens) & (tiles <= budgets.max_tiles)
    tokens, tiles = tokens[fits], tiles[fits]
    if not len(tokens):
        raise ConfigError(f"no document fits into {budgets.max_tokens} tokens and {budgets.max_tiles} tiles")
    few = tiles <= scarce.max_tiles
    windows = sorted(set(arguments.windows))
    return {
        "lengths": source,
        "documents": len(tokens),
        "longer than a pack": int((~fits).sum()),
        "max tokens": budgets.max_tokens,
        "max tiles": budgets.max_tiles,
        "ratio": "packs by the bound: L2 of Martello and Toth, the largest over means of the two budgets",
        "packs": _compare(tokens, tiles, budgets, windows, arguments.max_buffer_size),
        f"packs of at most {scarce.max_tiles} tiles": _compare(
            tokens[few], tiles[few], scarce, windows, arguments.max_buffer_size
        ),
        "many documents": [_many(tokens, tiles, budgets, arguments)],
        "attention of the busiest rank, by the mean rank": _balance(tokens, tiles, budgets, arguments),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py packing", description=DESCRIPTION)
    parser.add_argument("--lengths", metavar="FILE", type=Path, help="CSV file with the columns tokens and tiles")
    parser.add_argument("--documents", type=int, default=100_000, help="drawn without a file (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=34_000, help="of a pack (default: %(default)s)")
    parser.add_argument("--max-tiles", type=int, default=135, help="of a pack (default: %(default)s)")
    parser.add_argument("--scarce-tiles", type=int, default=60, help="the same again with so many tiles")
    parser.add_argument("--max-buffer-size", type=int, default=20, help="open packs of the others")
    parser.add_argument("--windows", type=int, nargs="+", default=[1_000, 10_000], help="besides the whole epoch")
    parser.add_argument("--many", type=int, default=1_000_000, help="documents to be timed (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32], help="data-parallel ranks")
    parser.add_argument("--step", type=int, default=64, help="packs of a training step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn and shuffled")
    return parser


def _lengths(arguments: argparse.Namespace) -> tuple[Lengths, str]:
    path = arguments.lengths or _shared_file()
    if path is not None:
        return read_lengths(path), path.name
    return drawn_lengths(arguments.documents, arguments.seed), f"drawn, no file given (seed {arguments.seed})"


def _shared_file() -> Path | None:
    """Return the file of real lengths where the tests' shared material is at hand."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    path = Path(os.environ.get("MEGATRON_V2PE_SHARED", beside)) / "lengths.csv"
    return path if path.is_file() else None


def _compare(
    tokens: np.ndarray, tiles: np.ndarray, budgets: PackBudgets, windows: Iterable[int], open_packs: int
) -> list[dict[str, Any]]:
    """One row per way of packing."""
    bound = two_budget_bound(tokens, tiles, budgets.max_tokens, budgets.max_tiles)
    limits = budgets.max_tokens, budgets.max_tiles, open_packs
    ways: dict[str, Callable[[], int]] = {
        "planned, whole epoch": lambda: len(plan_packs(tokens, tiles, budgets)),
        **{f"planned, window {window}": _windowed(tokens, tiles, budgets, window) for window in windows},
        f"best fit, {open_packs} open": lambda: _online(tokens.tolist(), tiles.tolist(), *limits),
        f"reference, {open_packs} open": lambda: len(reference_packs(tokens.tolist(), tiles.tolist(), *limits)),
    }
    rows: list[dict[str, Any]] = [{"way": "bound", "packs": bound, "ratio": 1.0, "tokens used": "", "seconds": ""}]
    for way, pack in ways.items():
        began = time.perf_counter()
        packs = pack()
        seconds = time.perf_counter() - began
        used = f"{tokens.sum() / (packs * budgets.max_tokens):.1%}"
        ratio = round(packs / bound, 5)
        rows.append({"way": way, "packs": packs, "ratio": ratio, "tokens used": used, "seconds": round(seconds, 2)})
    return rows


def _windowed(tokens: np.ndarray, tiles: np.ndarray, budgets: PackBudgets, window: int) -> Callable[[], int]:
    return lambda: len(plan_packs(tokens, tiles, budgets, window))


def _online(tokens: list[int], tiles: list[int], max_tokens: int, max_tiles: int, open_packs: int) -> int:
    packer: BestFitPacker[_Item] = BestFitPacker(max_tokens, max_tiles, open_packs)
    finished = [packer.add(_Item(*lengths)) for lengths in zip(tokens, tiles, strict=True)]
    return sum(pack is not None for pack in finished) + len(packer.open)


def _many(tokens: np.ndarray, tiles: np.ndarray, budgets: PackBudgets, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plan the lengths over and over, shuffled, as one epoch."""
    chosen = np.random.default_rng(arguments.seed).permutation(np.arange(arguments.many) % len(tokens))
    began = time.perf_counter()
    table = plan_packs(tokens[chosen], tiles[chosen], budgets)
    seconds = time.perf_counter() - began
    bound = two_budget_bound(tokens[chosen], tiles[chosen], budgets.max_tokens, budgets.max_tiles)
    return {
        "documents": arguments.many,
        "seconds": round(seconds, 2),
        "packs": len(table),
        "ratio": round(len(table) / bound, 5),
    }


def _balance(
    tokens: np.ndarray, tiles: np.ndarray, budgets: PackBudgets, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per number of ranks: how much longer the busiest rank takes, the mean and the worst over the steps."""
    table: PackTable = plan_packs(tokens, tiles, budgets, max(arguments.windows))
    costs = table.attention_costs(tokens)
    steps = [costs[at : at + arguments.step] for at in range(0, len(costs) - arguments.step + 1, arguments.step)]
    if not steps:
        raise ConfigError(f"{len(costs)} packs are fewer than the {arguments.step} of one step")
    rows: list[dict[str, Any]] = []
    for ranks in arguments.ranks:
        in_turn = [_unevenness(step, round_robin(len(step), ranks)) for step in steps]
        began = time.perf_counter()
        hands = [deal(step, ranks) for step in steps]
        milliseconds = (time.perf_counter() - began) / len(steps) * 1e3
        dealt = [_unevenness(step, hand) for step, hand in zip(steps, hands, strict=True)]
        rows.append(
            {
                "ranks": ranks,
                "packs a step": arguments.step,
                "in turn": round(float(np.mean(in_turn)), 4),
                "worst in turn": round(max(in_turn), 4),
                "dealt": round(float(np.mean(dealt)), 4),
                "worst dealt": round(max(dealt), 4),
                "ms a step": round(milliseconds, 2),
            }
        )
    return rows


def _unevenness(costs: np.ndarray, hands: list[list[int]]) -> float:
    sums = costs[np.array(hands)].sum(axis=1)
    return float(sums.max() / sums.mean())
