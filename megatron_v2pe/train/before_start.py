"""What of a training run a launcher refuses before it starts a process: its command line, its folders, its packages.

`train/main.py` refuses the same later, with the files themselves in hand: here is looked at what takes no time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_v2pe.data.annotations import read_entries, read_entry
from megatron_v2pe.data.indexed.layout import Manifest
from megatron_v2pe.errors import ConfigError, V2PEError
from megatron_v2pe.train import cli, published_flags
from megatron_v2pe.train.against_checkpoint import check_checkpoint
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.look import look
from megatron_v2pe.train.metrics import check_wandb

MOST_BYTES = 256 << 20
"""Annotations of a data list up to so large together are read before a run is started."""
MOST_SAMPLES = 200_000
"""An indexed data set of up to so many is planned before a run is started."""


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
        refuse(command.config, processes)


def refuse(config: ExperimentConfig, processes: int) -> None:
    """Refuse a run whose checkpoint, data, packages or folder would end it.

    Args:
        config: of the run, checked by itself.
        processes: of the run.

    Raises:
        V2PEError: names what is missing and where it comes from; all that was found at once.
        OSError: a file that may not be read.
    """
    problems = look(config, ranks=processes).problems if _small(config) else list(_missing(config))
    if len(problems) > 1:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    if problems:
        raise problems[0]


def _small(config: ExperimentConfig) -> bool:
    """Tell whether data can be looked at without a wait: a list's lines are read to be counted, a set is planned."""
    try:
        if config.data.indexed_path:
            return Manifest.read(Path(config.data.indexed_path)).counts["samples"] <= MOST_SAMPLES
        entries = read_entries(config.data.meta_path).items()
        lists = [read_entry(name, entry, config.data.meta_path) for name, entry in entries]
        return sum(os.path.getsize(dataset.annotation) for dataset in lists) <= MOST_BYTES
    except (V2PEError, OSError):
        return True  # what is wrong is told by who looks


def _missing(config: ExperimentConfig) -> Iterator[V2PEError | OSError]:
    """Yield what is missing, told without reading the data."""
    for work in (lambda: check_checkpoint(config), lambda: check_wandb(config.logging)):
        try:
            work()
        except (V2PEError, OSError) as error:
            yield error
