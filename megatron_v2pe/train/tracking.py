"""Writers that send a run to a server: Weights & Biases and MLflow.

A run that goes on in a later process goes on there too: the name that the server knows it by is kept beside its log.
"""

from __future__ import annotations

import math
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.errors import ConfigError, how_to_install
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.train.metrics import LoggedStep
from megatron_v2pe.train.metrics_writer import MetricsWriter, WriterContext

WANDB_ID, MLFLOW_ID = "wandb_run_id", "mlflow_run_id"
"""Files beside the log that hold the name of the run at a server."""
_PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for what is still to be sent."""
_WAITING = 100_000
"""Rows that wait to be sent; further ones are an error."""
_LONGEST_ID = 200


class WandbWriter(MetricsWriter):
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it in a folder of the log until `wandb sync`."""

    @classmethod
    def check(cls) -> None:
        """Look for the package.

        Raises:
            ConfigError: it is not installed.
        """
        _need("wandb", "wandb", "wandb")

    def __init__(self, place: WriterContext) -> None:
        """Begin the run, or go on with the one that the log names."""
        self.check()
        import wandb  # pyright: ignore[reportMissingImports]

        run_id = _known(place.folder, WANDB_ID) or secrets.token_hex(4)
        self._html = wandb.Html
        self._run = wandb.init(
            project=place.config.wandb_project,
            id=run_id,
            resume="allow",
            config=dict(place.settings),
            dir=None if place.folder is None else str(place.folder),
        )
        _remember(place.folder, WANDB_ID, str(run_id))
        # A run that goes on does the steps after its checkpoint once more: rows are placed by their own number.
        self._run.define_metric("*", step_metric="iteration")

    def write(self, step: LoggedStep) -> None:
        """Send the row."""
        self._run.log(dict(step.row))

    def write_values(self, iteration: int, values: Mapping[str, float]) -> None:
        """Send them as those of the step."""
        self._run.log({"iteration": iteration, **values})

    def add_page(self, page: Path) -> None:
        """Send the page, which the server shows."""
        self._run.log({"run_page": self._html(str(page))})

    def close(self) -> None:
        """End the run, once all is sent."""
        self._run.finish()


class MlflowWriter(MetricsWriter):
    """A run of an MLflow server, or of a folder; sent by a thread, so that no step waits for a server."""

    @classmethod
    def check(cls) -> None:
        """Look for the package.

        Raises:
            ConfigError: it is not installed.
        """
        _need("mlflow", "mlflow", "mlflow")

    def __init__(self, place: WriterContext) -> None:
        """Begin the run, or go on with the one that the log names."""
        self.check()
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._metric = Metric
        self._client: Any = MlflowClient(tracking_uri=place.config.mlflow_tracking_uri)
        known = _known(place.folder, MLFLOW_ID)
        if known is None:
            name = place.config.mlflow_experiment
            experiment = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            known = self._client.create_run(number).info.run_id
            settings = list(_flat(place.settings).items())
            for first in range(0, len(settings), 100):
                params = [Param(_allowed(key), value[:500]) for key, value in settings[first : first + 100]]
                self._client.log_batch(known, params=params)
            _remember(place.folder, MLFLOW_ID, known)
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known
        self._sender = _Sender()

    def write(self, step: LoggedStep) -> None:
        """Hand the row to the thread that sends."""
        self._send(step.iteration, step.row)

    def write_values(self, iteration: int, values: Mapping[str, float]) -> None:
        """Hand them over as those of the step."""
        self._send(iteration, values)

    def add_page(self, page: Path) -> None:
        """Send the page as an artifact of the run."""
        self._sender.put(lambda: self._client.log_artifact(self._id, str(page)))

    def close(self) -> None:
        """Wait for what is still to be sent, and end the run."""
        try:
            self._sender.close()
        finally:
            self._client.set_terminated(self._id)

    def _send(self, iteration: int, row: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._metric(_mlflow_name(name), float(value), now, iteration)
            for name, value in row.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        self._sender.put(lambda: self._client.log_batch(self._id, metrics=metrics))


class _Sender:
    """A thread that does one thing after the other; what one of them raises comes with the next `put` or `close`."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(_WAITING)
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="metrics to a server", daemon=True)
        self._thread.start()

    def put(self, action: Callable[[], object]) -> None:
        self._waiting.put_nowait(action)
        self._tell()

    def close(self) -> None:
        self._waiting.put_nowait(None)
        self._thread.join(_PATIENCE_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._waiting.qsize()} rows are not sent yet after {_PATIENCE_SECONDS:.0f} s")
        self._tell()

    def _tell(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _work(self) -> None:
        while (action := self._waiting.get()) is not None:
            try:
                action()
            except Exception as error:  # told by whoever puts next
                self._problem = error


def _need(package: str, setting: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(
            f"logging.{setting} is set, but the package {package} is not installed: {how_to_install(extra)}; "
            f"--logging.no-{setting} does without"
        )


def _known(folder: Path | None, name: str) -> str | None:
    """Return what an earlier process of this run has kept under a name."""
    if folder is None or not (folder / name).is_file():
        return None
    text = read_bytes(folder / name, ConfigError, _LONGEST_ID).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ConfigError(f"{folder / name}: not the name of a run; remove the file, and a new run is begun there")
    return text


def _remember(folder: Path | None, name: str, value: str) -> None:
    if folder is not None:
        write_text(folder / name, value + "\n")


def _mlflow_name(name: str) -> str:
    """Return the name of a value in MLflow: `loss` -> `train/loss`, `validation/loss/a` -> `validation/loss.a`.

    Its store of files makes a folder of what stands before a slash, which must not be a value itself.
    """
    before, _, rest = name.partition("/")
    return _allowed(f"{before}/{rest.replace('/', '.')}" if rest else f"train/{name}")


def _allowed(name: str) -> str:
    """Return a name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = str(value)
    return found
