"""A training run's folder without training: a converted checkpoint with the state of a run beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from helpers.sealing import seal
from megatron_v2pe.base.config_tree import to_dict
from megatron_v2pe.checkpoint.folder import DESCRIPTION, LATEST, TRAINING_STATE, iteration_folder
from megatron_v2pe.train.config import ExperimentConfig


def make_run(converted: Path, root: Path, iteration: int = 2, **settings: Any) -> Path:
    """Write the folder of a run with one checkpoint; return it.

    Args:
        converted: Megatron checkpoint the run started from.
        root: folder of the run.
        iteration: its only step.
        settings: those given to the run, section by section, over the defaults.
    """
    folder = iteration_folder(root, iteration)
    shutil.copytree(converted, folder)
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**description, "kind": "training", "iteration": iteration}))
    config = ExperimentConfig().updated(settings, "the test")
    write_state(folder, {"iteration": iteration, "loader": {}, "settings": to_dict(config)})
    (root / LATEST).write_text(f"{iteration}\n")
    return root


def write_state(folder: Path, state: Any) -> None:
    """Replace the state of a checkpoint of a run, and make its checksums fit."""
    (folder / TRAINING_STATE).write_text(json.dumps(state))
    seal(folder)
