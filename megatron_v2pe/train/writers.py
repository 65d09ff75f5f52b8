"""Where the steps of a run are logged: the console, `metrics.jsonl`, TensorBoard, servers, and what is added.

Each is a `MetricsWriter` with a name. `logging.jsonl`, `.tensorboard`, `.wandb` and `.mlflow` switch ours on (those of
servers stand in `tracking.py`); others, from the `writer.py` of a plug-in (`base/plugins`), are named by
`logging.writers`:

    @WRITERS.register("csv")
    class CsvWriter(MetricsWriter):
        def __init__(self, place: WriterContext) -> None: ...
        def write(self, step: LoggedStep) -> None: ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import FILE_ONLY, get_logger
from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.base.progress import Progress, duration, on_terminal, progress_bar
from megatron_v2pe.errors import V2PEError
from megatron_v2pe.train.config import LoggingConfig
from megatron_v2pe.train.metrics import PART_RATES, LoggedStep, Rates, StepMetrics, is_no_number
from megatron_v2pe.train.metrics_file import ADDED, METRICS, MetricsFile
from megatron_v2pe.train.metrics_writer import MetricsWriter, WriterContext
from megatron_v2pe.train.page.record_file import PAGE
from megatron_v2pe.train.tracking import MlflowWriter, WandbWriter

_log = get_logger(__name__)
_NOTABLE_WAIT = 0.05
"""Share of a step spent in waiting for data that the console shows."""


WRITERS: Registry[type[MetricsWriter]] = Registry("log writer", "megatron_v2pe.train.writers", "writer")
"""Writers by name."""
WRITERS.add("wandb", WandbWriter)
WRITERS.add("mlflow", MlflowWriter)


@WRITERS.register("console")
class ConsoleWriter(MetricsWriter):
    """A line of the log for each step; on a terminal a bar in its place, and the lines go to the kept log alone."""

    def __init__(self, place: WriterContext) -> None:
        """Open the bar, where there is a terminal."""
        self._bar: Progress | None = None
        if on_terminal():
            self._bar = progress_bar(total=place.last, initial=place.start, desc="train", unit="steps")

    def advance(self, iteration: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def write(self, step: LoggedStep) -> None:
        """Write a line, or beside the bar."""
        row = step.row
        learned = (_shown("loss", row["loss"], 4), f"lr {row['lr']:.2e}", _shown("grad norm", row["grad_norm"], 2))
        words = [*learned, step.recent.words(), f"{row['memory_gib']:.1f} GiB"]
        if row["data_wait_seconds"] > _NOTABLE_WAIT * row["seconds"]:
            words.append(f"waits for data {row['data_wait_seconds'] / row['seconds']:.0%}")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(words))
        if step.whole.steps:
            left = (step.last - step.iteration) * step.whole.seconds / step.whole.steps
            words.append(f"ETA {duration(left)}")
        text = "  ".join([f"step {step.iteration}/{step.last}", *words])
        _log.info("%s", text, extra=FILE_ONLY if self._bar is not None else None)
        if values := {name: value for name, value in step.values.items() if not name.startswith(PART_RATES)}:
            self.write_values(step.iteration, values)

    def write_values(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write them in a line of their own."""
        _log.info("after step %d: %s", iteration, ", ".join(f"{name} {value:.6g}" for name, value in values.items()))

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


@WRITERS.register("jsonl")
class JsonlWriter(MetricsWriter):
    """A row of `metrics.jsonl` for each step."""

    def __init__(self, place: WriterContext) -> None:
        """Open the file, which is made or appended to."""
        assert place.folder is not None
        self._file = MetricsFile(place.folder / METRICS, place.start)

    def write(self, step: LoggedStep) -> None:
        """Append a row."""
        self._file.write(step.row)

    def write_values(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a row that belongs to the step's, which an earlier process has written."""
        self._file.write({"iteration": iteration, ADDED: True, **values, "time": time.time()})

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@WRITERS.register("tensorboard")
class TensorBoardWriter(MetricsWriter):
    """Event files for TensorBoard; the step that warms up has no rates there."""

    scalars = ("loss", "lr", "grad_norm", "memory_gib")
    rates = ("tokens_per_second", "tiles_per_second", "tflops_per_device", "mfu")

    def __init__(self, place: WriterContext) -> None:
        """Open a new event file; events of later steps that an interrupted run has left are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        assert place.folder is not None
        self._board: Any = SummaryWriter(str(place.folder / "tensorboard"), purge_step=place.start + 1)

    def write(self, step: LoggedStep) -> None:
        """Add the step's scalars; values of other work keep their names."""
        for name in self.scalars if step.row["warm_up"] else (*self.scalars, *self.rates):
            if step.row[name] is not None:
                self._board.add_scalar(f"train/{name}", step.row[name], step.iteration)
        self.write_values(step.iteration, {**step.measured, **step.values})

    def write_values(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each."""
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Flush and close the file."""
        self._board.close()


def chosen_writers(config: LoggingConfig, keeps_files: bool) -> list[type[MetricsWriter]]:
    """Return the writers of a run, the console first.

    Args:
        config: which writers are on.
        keeps_files: there is a folder for logs.

    Raises:
        ConfigError: `logging.writers` names one that is none; names the nearest.
    """
    switches = {
        "console": True,
        "jsonl": config.jsonl and keeps_files,
        "tensorboard": config.tensorboard and keeps_files,
        "wandb": config.wandb,
        "mlflow": config.mlflow,
    }
    names = [*(name for name, is_on in switches.items() if is_on), *config.writers]
    return [WRITERS.get(name) for name in dict.fromkeys(names)]


def check_writers(config: LoggingConfig) -> None:
    """Refuse, before it starts, a run one of whose writers could not be opened.

    Raises:
        ConfigError: no writer has such a name, or the package that a writer needs is missing.
    """
    for writer in chosen_writers(config, keeps_files=True):
        writer.check()


class MetricsLog:
    """Averages the steps of a run and hands those that are logged to its writers, on rank 0 alone."""

    def __init__(
        self,
        config: LoggingConfig,
        folder: Path | None,
        rank: int,
        start: int,
        total: int,
        device: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the writers.

        Args:
            config: which writers.
            folder: where files go, None for none.
            rank: only 0 writes.
            start: steps already done; the first row says so.
            total: the step at which this process ends, if nothing stops it before.
            device: what the run runs on, in words; the first row says so.
            settings: all settings of the run, for writers that keep them.

        Raises:
            V2PEError: a writer cannot be opened, and says what can be done.
        """
        self._is_silent, self._interval, self._total = rank != 0, config.log_interval, total
        self._device = device
        self._has_warmed_up = False
        self._complained: set[str] = set()
        self._page = None if folder is None else folder / PAGE
        self._recent, self._whole = Rates(), Rates()
        self._writers: list[MetricsWriter] = []
        if self._is_silent:
            return
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        place = WriterContext(config, folder, start, total, settings or {})
        for writer in chosen_writers(config, keeps_files=folder is not None):
            try:
                self._writers.append(writer(place))
            except V2PEError:
                raise
            except Exception as error:
                _log.error("%s cannot be opened, training goes on without it: %s", writer.__name__, _in_words(error))

    def write(self, metrics: StepMetrics, values: Mapping[str, float] | None = None) -> None:
        """Take a step, and log it where its turn has come, or where there are values of work done after it."""
        if self._is_silent:
            return
        warm_up, self._has_warmed_up = not self._has_warmed_up, True
        if not warm_up:
            self._recent.add(metrics)
            self._whole.add(metrics)
        self._each("the progress", lambda writer: writer.advance(metrics.iteration))
        stated = {name: None if is_no_number(value) else value for name, value in (values or {}).items()}
        if not values and metrics.iteration % self._interval and metrics.iteration != self._total:
            return
        device = {"device": self._device} if self._device else {}
        row = {**metrics.row(), **stated, "warm_up": warm_up, **device, "time": time.time()}
        measured = {name: row[name] for name in metrics.values if row[name] is not None}
        known = {name: value for name, value in stated.items() if value is not None}
        step = LoggedStep(row, self._recent, self._whole, self._total, known, measured)
        self._recent = Rates()
        self._each(f"step {step.iteration}", lambda writer: writer.write(step))
        self._device = ""

    def add(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log what was done after a step whose row an earlier process has written."""
        known = {name: value for name, value in values.items() if not is_no_number(value)}
        self._each(f"step {iteration}", lambda writer: writer.write_values(iteration, known))

    def _each(self, what: str, write: Callable[[MetricsWriter], None]) -> None:
        """Have every writer do something; an error is logged once for each writer, and ends neither run nor others."""
        for writer in self._writers:
            try:
                write(writer)
            except Exception as error:  # a full disk, a server that is gone: checkpoints do not depend on this
                name = type(writer).__name__
                if name not in self._complained:
                    words = _in_words(error)
                    _log.error("%s: %s is not written, training goes on: %s", name, what, words)
                self._complained.add(name)

    def rates(self) -> str:
        """Return the averages of all steps but the first of this process, in words; "" where there are none."""
        steps = self._whole.steps
        return f"{self._whole.words()} over {steps} step{'s' * (steps > 1)}" if steps else ""

    def close(self) -> None:
        """Give the run's page to every writer, and flush and close it."""
        page = self._page
        if page is not None and page.is_file():
            self._each("the run's page", lambda writer: writer.add_page(page))
        self._each("the end", lambda writer: writer.close())
        self._writers = []


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | V2PEError) else f"{type(error).__name__}: {error}"


def _shown(name: str, value: float | None, digits: int) -> str:
    return f"{name} not finite" if value is None else f"{name} {value:.{digits}f}"
