"""What a run tells while it goes on: a line of the log, a row of JSON, TensorBoard, and Weights & Biases where asked.

On a terminal a bar stands in for the lines, which then go to the kept log alone.

The first step of a process warms up: it compiles, opens connections and fills allocators, and says nothing about the
speed of a run. Its row has its own numbers and `warm_up: true`; the rates on the console are averages over the steps
since the last line without it, TensorBoard has no rates of it, and the last line of a run averages over all others.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import FILE_ONLY, get_logger
from megatron_v2pe.base.progress import Progress, duration, on_terminal, progress_bar
from megatron_v2pe.errors import ConfigError, how_to_install
from megatron_v2pe.train.config import LoggingConfig
from megatron_v2pe.train.metrics_file import METRICS, MetricsFile

_log = get_logger(__name__)
_SCALARS = ("loss", "lr", "grad_norm", "memory_gib")
_RATES = ("tokens_per_second", "tiles_per_second", "tflops_per_device", "mfu")


@dataclass(frozen=True)
class StepMetrics:
    """One logged step."""

    iteration: int
    loss: float
    lr: float
    grad_norm: float
    """Before clipping; 0 where `optimizer.clip_grad` is 0, which measures none."""
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
    """What the model needs for the step, counted once, in 10^12 operations; see `models.flops`."""
    tflops_per_device: float
    """The same in a second and per device (a rank has one)."""
    mfu: float | None
    """Share of the device's peak; None where that is not known."""


@dataclass
class Rates:
    """Averages over steps."""

    seconds: float = 0.0
    tokens: int = 0
    tiles: int = 0
    device_tflop: float = 0.0
    peak_seconds: float = 0.0
    """What the steps would take at the device's peak."""
    steps: int = field(default=0)

    def add(self, metrics: StepMetrics) -> None:
        """Take a step into the averages."""
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


class MetricsLog:
    """Writes steps to the configured places; does nothing on ranks other than 0."""

    def __init__(
        self,
        config: LoggingConfig,
        folder: Path | None,
        rank: int,
        start: int,
        total: int,
        device: str = "",
    ) -> None:
        """Open the outputs.

        Args:
            config: which outputs.
            folder: where files go, None for none.
            rank: only 0 writes.
            start: steps already done; the first row says so.
            total: the step at which this process ends, if nothing stops it before.
            device: what the run runs on, in words; the first row says so.
        """
        self._config = config
        self._rank = rank
        self._told = False
        self._device: str | None = device or None
        self._warm = False
        self._shown, self._whole = Rates(), Rates()
        self._jsonl = self._board = self._wandb = None
        self._total = total
        self._bar: Progress | None = None
        if rank:
            return
        if on_terminal():
            self._bar = progress_bar(total=total, initial=start, desc="train", unit="steps")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if config.jsonl:
                self._jsonl = MetricsFile(folder / METRICS, start)
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        if config.wandb:
            self._wandb = _wandb_run(config)

    def write(self, metrics: StepMetrics) -> None:
        """Log one step."""
        if self._rank:
            return
        warm_up, self._warm = not self._warm, True
        if not warm_up:
            self._shown.add(metrics)
            self._whole.add(metrics)
        if self._bar is not None:
            self._bar.update(metrics.iteration - self._bar.n)
        if metrics.iteration % self._config.log_interval and metrics.iteration != self._total:
            return
        self._tell(metrics)
        self._shown = Rates()
        more = {"device": self._device} if self._device else {}
        try:
            self._write({**asdict(metrics), "warm_up": warm_up, **more, "time": time.time()}, metrics.iteration)
            self._device = None
        except OSError as error:  # a full disk does not end a run; its checkpoints do not depend on this
            if not self._told:
                _log.error("metrics of step %d are not written, training goes on: %s", metrics.iteration, error)
            self._told = True

    def _tell(self, metrics: StepMetrics) -> None:
        """Say a step in a line, or beside the bar."""
        learned = (f"loss {metrics.loss:.4f}", f"lr {metrics.lr:.2e}", f"grad norm {metrics.grad_norm:.2f}")
        words = [*learned, self._shown.words(), f"{metrics.memory_gib:.1f} GiB"]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(words))
        if self._whole.steps:
            left = (self._total - metrics.iteration) * self._whole.seconds / self._whole.steps
            words.append(f"ETA {duration(left)}")
        text = "  ".join([f"step {metrics.iteration}/{self._total}", *words])
        _log.info("%s", text, extra=FILE_ONLY if self._bar is not None else None)

    def _write(self, row: dict[str, Any], iteration: int) -> None:
        if self._jsonl is not None:
            self._jsonl.write(row)
        if self._board is not None:
            for name in _SCALARS if row["warm_up"] else (*_SCALARS, *_RATES):
                if row[name] is not None:
                    self._board.add_scalar(f"train/{name}", row[name], iteration)
        if self._wandb is not None:
            self._wandb.log(row, step=iteration)

    def rates(self) -> str:
        """Return the averages of all steps but the first of this process, in words; "" where there are none."""
        steps = self._whole.steps
        return f"{self._whole.words()} over {steps} step{'s' * (steps > 1)}" if steps else ""

    def close(self) -> None:
        """Flush and close every output."""
        for output in (self._bar, self._jsonl, self._board):
            if output is not None:
                output.close()
        if self._wandb is not None:
            self._wandb.finish()


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def check_wandb(config: LoggingConfig) -> None:
    """Refuse a run that is to report to Weights & Biases where its package is missing.

    Raises:
        ConfigError: says how to install it, and how to do without.
    """
    if config.wandb and find_spec("wandb") is None:
        raise ConfigError(
            f"logging.wandb is set, but the package wandb is not installed: {how_to_install('wandb')}; "
            "--logging.no-wandb does without"
        )


def _wandb_run(config: LoggingConfig) -> Any:
    check_wandb(config)
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb.init(project=config.wandb_project)
