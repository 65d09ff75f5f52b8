"""What a run tells while it goes on: a console line, a row of JSON, TensorBoard, and Weights & Biases where asked."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.logging import get_logger
from megatron_v2pe.train.config import LoggingConfig
from megatron_v2pe.train.metrics_file import METRICS, MetricsFile

_log = get_logger(__name__)


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


class MetricsLog:
    """Writes steps to the configured places; does nothing on ranks other than 0."""

    def __init__(self, config: LoggingConfig, folder: Path | None, rank: int, start: int, total: int) -> None:
        """Open the outputs.

        Args:
            config: which outputs.
            folder: where files go, None for none.
            rank: only 0 writes.
            start: steps already done; the first row says so.
            total: steps of the whole run.
        """
        self._config = config
        self._rank = rank
        self._told = False
        self._jsonl = self._board = self._wandb = None
        self._bar: tqdm[Any] | None = None
        if rank:
            return
        often = 1 if sys.stderr.isatty() else 10  # seconds; a log file should not grow by a line every second
        self._bar = tqdm(
            total=total, initial=start, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=often
        )
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
        assert self._bar is not None
        self._bar.update(metrics.iteration - self._bar.n)
        if metrics.iteration % self._config.log_interval and metrics.iteration != self._bar.total:
            return
        self._bar.set_postfix_str(
            f"loss {metrics.loss:.4f}, lr {metrics.lr:.2e}, grad {metrics.grad_norm:.2f}, "
            f"{metrics.tokens_per_second:,.0f} tok/s, {metrics.tiles_per_second:.1f} tiles/s, "
            f"{metrics.memory_gib:.1f} GiB"
        )
        try:
            self._write({**asdict(metrics), "time": time.time()}, metrics.iteration)
        except OSError as error:  # a full disk does not end a run; its checkpoints do not depend on this
            if not self._told:
                _log.error("metrics of step %d are not written, training goes on: %s", metrics.iteration, error)
            self._told = True

    def _write(self, row: dict[str, Any], iteration: int) -> None:
        if self._jsonl is not None:
            self._jsonl.write(row)
        if self._board is not None:
            for name in ("loss", "lr", "grad_norm", "tokens_per_second", "tiles_per_second", "memory_gib"):
                self._board.add_scalar(f"train/{name}", row[name], iteration)
        if self._wandb is not None:
            self._wandb.log(row, step=iteration)

    def close(self) -> None:
        """Flush and close every output."""
        for output in (self._bar, self._jsonl, self._board):
            if output is not None:
                output.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(config: LoggingConfig) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("logging.wandb is set, but the package wandb is not installed: pip install wandb") from None
    return wandb.init(project=config.wandb_project)
