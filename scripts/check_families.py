"""Run every language model and both towers in every layout beside transformers; `scripts/check_families.sh` starts it.

The cases are those of `tests/parallel/test_family_parity.py`, which runs a choice of them. Prints a Markdown table: a
row for each family, a column for each layout, in every cell the largest error of logits (in their own units, the
largest is about 4.5) and of gradients (relative to each tensor's largest entry).
"""

from __future__ import annotations

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.family_cases import FAMILIES  # noqa: E402
from helpers.family_parity import LAYOUTS, TOLERANCE, Runs  # noqa: E402
from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.v2pe.settings import StridePolicy  # noqa: E402
from megatron_v2pe.workshop.worker_pool import WorkerError, WorkerPool  # noqa: E402

DEFAULT = StridePolicy("default")
STRIDES = (StridePolicy("v2pe_fix", Fraction(1, 2)), StridePolicy("v2pe_fix", 64), StridePolicy("v2pe_rnd", seed=5))
"""Kinds of V2PE positions, which cells have in turn."""


def main(argv: list[str] | None = None) -> int:
    """Run the cases; return 1 where an error is above what is allowed, or a case does not run."""
    parser = argparse.ArgumentParser(prog="bash scripts/check_families.sh", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--layouts", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every error there")
    arguments = parser.parse_args(argv)
    pools = {size: WorkerPool(size) for size in (1, 2, 4)}
    runs = Runs(lambda size, function, **given: pools[size].run(function, **given)[-1])
    found: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    print(f"| | {' | '.join(arguments.layouts)} |\n|---|{'---|' * len(arguments.layouts)}", flush=True)
    try:
        for number, family in enumerate(arguments.families):
            found[family] = {}
            for column, layout in enumerate(arguments.layouts):
                policies = DEFAULT, STRIDES[(number + column) % len(STRIDES)]
                found[family][layout] = _cell(runs, family, layout, policies, wrong)
            print(f"| {family} | {' | '.join(map(_text, found[family].values()))} |", flush=True)
    finally:
        for pool in pools.values():
            pool.close()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for sentence in wrong:
        print(sentence)
    return int(bool(wrong))


def _cell(
    runs: Runs, family: str, layout: str, policies: tuple[StridePolicy, ...], wrong: list[str]
) -> dict[str, float] | None:
    """Return the largest errors of a family in a layout; add to `wrong` what is above the tolerance."""
    largest = dict.fromkeys(TOLERANCE, 0.0)
    for policy in policies:
        what = f"{family}, {layout}, {policy.version}"
        try:
            errors = runs.errors(family, layout, policy)
        except (WorkerError, AssertionError) as error:
            wrong.append(f"{what}: {str(error)[-600:]}")
            return None
        for name, allowed in TOLERANCE.items():
            largest[name] = max(largest[name], errors[name])
            if errors[name] > allowed:
                wrong.append(f"{what}: {name} {errors[name]:.1e}, allowed {allowed:.0e}; worst {errors['worst']}")
    return largest


def _text(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "does not run"
    logits = f"{cell['logits']:.0e}" if cell["logits"] else "-"  # data-parallel ranks have those of their own packs
    return f"{logits}, {cell['gradients']:.0e}"


if __name__ == "__main__":
    run_tool(main)
