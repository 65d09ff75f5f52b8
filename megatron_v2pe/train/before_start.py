"""What of a training run a launcher refuses before it starts a process: its command line, its folders, its packages.

`train/main.py` refuses the same later, with the files themselves in hand: here is looked at what takes no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_v2pe.data.indexed.layout import Manifest
from megatron_v2pe.data.sources import read_entries, read_entry
from megatron_v2pe.train import cli, published_flags
from megatron_v2pe.train.against_checkpoint import check_checkpoint
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.metrics import check_wandb


def check(argv: Sequence[str], recipes: cli.Recipes, processes: int) -> None:
    """Look at a command line as a run on so many processes would.

    Args:
        argv: as `cli.main` takes it.
        recipes: named runs.
        processes: of the whole run.

    Raises:
        V2PEError: what the run would refuse.
        SystemExit: the command line asks for something that is answered here (0), or cannot be read (2).
    """
    if "--print-flags" in argv:
        print(published_flags.as_markdown(), end="")
        raise SystemExit(0)
    command = cli.parse_command(argv, recipes)
    command.config.validate(processes)
    if not command.dry_run:
        refuse(command.config)


def refuse(config: ExperimentConfig) -> None:
    """Refuse a run whose checkpoint, data or packages are not there.

    Raises:
        V2PEError: names what is missing, and where it comes from.
    """
    check_checkpoint(config)
    if config.data.indexed_path:
        Manifest.read(Path(config.data.indexed_path))
    if config.data.meta_path:
        for name, entry in read_entries(config.data.meta_path).items():
            read_entry(name, entry, config.data.meta_path)
    check_wandb(config.logging)
