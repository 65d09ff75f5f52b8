"""What a run measures: the numbers of a step, averages over steps, and a logged step as every writer gets it.

The first step of a process warms up: it compiles, opens connections and fills allocators, and says nothing about the
speed of a run. Its row has its own numbers and `warm_up: true`; averages are over the other steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PART_RATES = "lr/"
"""Begins the names of the learning rates of parts, where they are not all alike."""


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of one logged step."""

    iteration: int
    loss: float
    lr: float
    grad_norm: float
    """Norm before clipping."""
    tokens: int
    """Tokens of all packs of the step, padding not counted."""
    tiles: int
    packs: int
    seconds: float
    tokens_per_second: float
    tiles_per_second: float
    memory_gib: float
    """Peak memory of the process that needs most: allocated on the GPU, resident on CPU."""
    tflop: float
    """Operations that the model needs for the step, counted once, in 10^12; see `models.flops`."""
    tflops_per_device: float
    """Those operations in a second, for each device (a rank has one)."""
    mfu: float | None
    """Share of the device's peak; None where that is not known."""
    host_memory_gib: float = 0.0
    """Host memory of the rank whose process and readers hold most (`device/host_memory.py`)."""
    data_wait_seconds: float = 0.0
    """Seconds of the step that the rank which waited longest waited for its data."""
    values: Mapping[str, float] = field(default_factory=dict)
    """What else is known of the step, by names with a slash; they stand in its row by themselves."""

    def row(self) -> dict[str, Any]:
        """Return all numbers by name; None in place of one that is not finite, as in a step that was skipped."""
        numbers = asdict(self)
        numbers |= numbers.pop("values")
        return {name: None if is_no_number(value) else value for name, value in numbers.items()}


def is_no_number(value: Any) -> bool:
    """Return whether a value is NaN or infinite, for which JSON has no word."""
    return isinstance(value, float) and not math.isfinite(value)


@dataclass
class Rates:
    """Time, tokens and work added up over steps, from which averages are computed."""

    seconds: float = 0.0
    tokens: int = 0
    tiles: int = 0
    device_tflop: float = 0.0
    peak_seconds: float = 0.0
    """What the steps would take at the device's peak."""
    steps: int = field(default=0)

    def add(self, metrics: StepMetrics) -> None:
        """Add a step to the averages."""
        self.steps += 1
        self.seconds += metrics.seconds
        self.tokens += metrics.tokens
        self.tiles += metrics.tiles
        self.device_tflop += metrics.tflops_per_device * metrics.seconds
        self.peak_seconds += (metrics.mfu or 0.0) * metrics.seconds

    def words(self) -> str:
        """Return the averages as a line shows them; "warming up" before there is a step that counts."""
        if not self.steps:
            return "warming up"
        share = f" ({self.peak_seconds / self.seconds:.1%} MFU)" if self.peak_seconds else ""
        return (
            f"{self.tokens / self.seconds:,.0f} tok/s, {self.tiles / self.seconds:.1f} tiles/s, "
            f"{_digits(self.device_tflop / self.seconds)} TFLOP/s{share}"
        )


@dataclass(frozen=True)
class LoggedStep:
    """A step that is logged, and the run around it."""

    row: dict[str, Any]
    """Numbers of the step by name (`StepMetrics`), `warm_up`, `time` in seconds since 1970, and in the first row of a
    process `device`."""
    recent: Rates
    """Averages since the step that was logged before, without the one that warms up."""
    whole: Rates
    """Averages over all steps of this process, without the one that warms up."""
    last: int
    """Step at which this process ends, if nothing stops it before."""
    values: Mapping[str, float] = field(default_factory=dict)
    """What was done after the step has given, by names with a slash; all of them are in the row too."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Further numbers of the step itself, by names with a slash (`StepMetrics.values`); they are in the row too."""

    @property
    def iteration(self) -> int:
        """Number of the step, from 1."""
        return self.row["iteration"]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
