"""Train: `tools/train.py --recipe NAME [--section.setting VALUE ...]`, started by a launcher (docs/launching.md)."""

from __future__ import annotations

import sys

from megatron_v2pe.base.command import run_tool


def main(argv: list[str] | None = None) -> int:
    """Read the command line and train; return the exit status."""
    from megatron_v2pe.recipes.registry import RECIPES  # after `run_tool` has seen to an early end
    from megatron_v2pe.train import cli

    return cli.main(sys.argv[1:] if argv is None else argv, RECIPES)


def check(argv: list[str], processes: int) -> None:
    """Refuse what can be refused before so many processes are started, see `device/launch_checks.py`."""
    from megatron_v2pe.recipes.registry import RECIPES
    from megatron_v2pe.train import cli

    cli.check(argv, RECIPES, processes)


if __name__ == "__main__":
    run_tool(main)
