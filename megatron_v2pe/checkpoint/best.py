"""Which checkpoints of a run are its best by a value of validation: the file in the run's folder that says so.

`best_checkpoints.json` holds the value of every step that was validated and may have a checkpoint. Which of them are
the best is decided among the checkpoints that are there, when it is asked: a kill between a validation and its
checkpoint leaves nothing wrong behind.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.text import read_json

BEST_FILE = "best_checkpoints.json"
BEST = "best"
"""What `RUN/best` names: the best checkpoint of a run."""


@dataclass(frozen=True)
class BestCheckpoints:
    """Values of a run's checkpoints, and how many of the best are kept."""

    by: str = ""
    """Name of the value."""
    keep: Annotated[int, Range(0)] = 0
    """How many are kept beside the newest ones."""
    greater_is_better: bool = False
    values: dict[str, float] = field(default_factory=dict)
    """Step, in digits -> value."""

    @classmethod
    def read(cls, root: Path) -> BestCheckpoints:
        """Read the file of a run's folder; one without the file has no best.

        Raises:
            CheckpointError: it is damaged; names the field.
        """
        path = root / BEST_FILE
        if not path.is_file():
            return cls()
        found = typed(cls, read_json(path, CheckpointError), str(path), CheckpointError)
        if bad := [name for name in found.values if not is_whole_number(name)]:
            raise CheckpointError(f"{path}: values: expected numbers of steps, found {ascii(bad[0])[:40]}")
        return found

    def write(self, root: Path) -> None:
        """Write the file; it is there whole or not at all."""
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / BEST_FILE, json.dumps(asdict(self), indent=1) + "\n", durable=True)

    def best(self, there: list[int]) -> list[int]:
        """Return the steps that are kept as the best, the best first; of equals the earlier one is better.

        Args:
            there: steps of the checkpoints that are there.
        """
        sign = -1.0 if self.greater_is_better else 1.0
        found = {step: self.values[str(step)] for step in there if str(step) in self.values}
        ranked = sorted(found, key=lambda step: (sign * found[step], step))
        return ranked[: self.keep]

    def with_value(self, step: int, value: float, there: list[int]) -> BestCheckpoints:
        """Return this with the value of a step, and without those of later steps and of checkpoints that are gone.

        Args:
            step: step that was validated.
            value: its value; one that is not finite does not count.
            there: steps of the checkpoints that are there.
        """
        kept = {name: old for name, old in self.values.items() if int(name) in there and int(name) < step}
        if math.isfinite(value):
            kept[str(step)] = value
        return replace(self, values=kept)
