"""Train: `torchrun --nproc_per_node 2 tools/train.py --recipe NAME [--section.setting VALUE ...]`."""

from __future__ import annotations

import sys

from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli


def main(argv: list[str] | None = None) -> int:
    """Read the command line and train; return the exit status."""
    return cli.main(sys.argv[1:] if argv is None else argv, RECIPES)


if __name__ == "__main__":
    sys.exit(main())
