"""Writers that send a run to a server, with made-up packages in place of W&B and MLflow, and writers that fail."""

from __future__ import annotations

import logging
import sys
import types
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.config import LoggingConfig
from megatron_v2pe.train.metrics import StepMetrics
from megatron_v2pe.train.metrics_file import METRICS, read_metrics
from megatron_v2pe.train.metrics_writer import MetricsWriter
from megatron_v2pe.train.page.record_file import PAGE
from megatron_v2pe.train.tracking import MLFLOW_ID, WANDB_ID
from megatron_v2pe.train.writers import WRITERS, MetricsLog, check_writers

SETTINGS = {"train": {"precision": "fp32"}, "data": {"meta_path": None}}


def step(number):
    return StepMetrics(
        iteration=number,
        loss=2.0 / number,
        lr=1e-3,
        grad_norm=1.0,
        tokens=10,
        tiles=1,
        packs=1,
        seconds=1.0,
        tokens_per_second=10.0,
        tiles_per_second=1.0,
        memory_gib=1.0,
        tflop=1.0,
        tflops_per_device=1.0,
        mfu=None,
        values={"loss/a set: one": 2.0},
    )


def train(folder, start=0, last=2, **config):
    log = MetricsLog(LoggingConfig(tensorboard=False, **config), folder, 0, start, last, settings=SETTINGS)
    for number in range(start + 1, last + 1):
        log.write(step(number), {"validation/loss": 0.5} if number == last else {})
    log.close()


def module(monkeypatch, name, **content):
    made = types.ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def wandb(monkeypatch):
    runs = []

    class Run:
        def __init__(self, **given):
            self.given, self.rows, self.metrics, self.is_closed = given, [], [], False
            runs.append(self)

        def define_metric(self, *given, **named):
            self.metrics.append((given, named))

        def log(self, row):
            self.rows.append(row)

        def finish(self):
            self.is_closed = True

    module(monkeypatch, "wandb", init=lambda **given: Run(**given), Html=lambda path: f"page {path}")
    return runs


@pytest.fixture
def mlflow(monkeypatch):
    calls = []

    class Client:
        def __init__(self, tracking_uri):
            calls.append(("open", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_run(self, number):
            return SimpleNamespace(info=SimpleNamespace(run_id="abc123"))

        def __getattr__(self, name):
            return lambda *given, **named: calls.append((name, given, named)) or "7"

    module(monkeypatch, "mlflow", MlflowClient=Client)
    module(monkeypatch, "mlflow.entities", Metric=lambda *given: given, Param=lambda *given: given)
    return calls


def test_wandb_goes_on_in_the_run_that_the_log_names(tmp_path, wandb):
    (tmp_path / PAGE).write_text("<p>")
    train(tmp_path, wandb=True)
    train(tmp_path, start=2, last=3, wandb=True)
    first, second = wandb
    assert first.given["id"] == second.given["id"] == (tmp_path / WANDB_ID).read_text().strip()
    assert first.given["config"] == SETTINGS and first.given["resume"] == "allow"
    assert first.given["project"] == "megatron-v2pe" and first.given["dir"] == str(tmp_path)
    assert first.metrics == [(("*",), {"step_metric": "iteration"})]
    assert [row.get("iteration") for row in first.rows] == [1, 2, None]
    assert first.rows[1]["loss/a set: one"] == 2.0 and first.rows[1]["validation/loss"] == 0.5
    assert first.rows[2] == {"run_page": f"page {tmp_path / PAGE}"}
    assert first.is_closed and second.is_closed


def test_mlflow_has_settings_rows_and_page_and_goes_on(tmp_path, mlflow):
    (tmp_path / PAGE).write_text("<p>")
    train(tmp_path, mlflow=True, mlflow_tracking_uri="file:store")
    assert mlflow[0] == ("open", "file:store") and (tmp_path / MLFLOW_ID).read_text() == "abc123\n"
    batches = [named for name, _, named in mlflow[1:] if name == "log_batch"]
    assert ("train.precision", "fp32") in batches[0]["params"]
    rows = [{metric[0]: (metric[1], metric[3]) for metric in batch["metrics"]} for batch in batches[1:]]
    assert [row["train/loss"] for row in rows] == [(2.0, 1), (1.0, 2)]
    assert rows[1]["loss/a set_ one"] == (2.0, 2) and rows[1]["validation/loss"] == (0.5, 2)
    assert [name for name, *_ in mlflow[-2:]] == ["log_artifact", "set_terminated"]
    mlflow.clear()
    train(tmp_path, start=2, last=3, mlflow=True)
    assert [name for name, *_ in mlflow] == ["open", "update_run", "log_batch", "log_artifact", "set_terminated"]


def test_a_damaged_name_of_a_run_is_refused(tmp_path, wandb):
    (tmp_path / WANDB_ID).write_text("../x y")
    with pytest.raises(ConfigError, match="wandb_run_id: not the name of a run; remove the file"):
        train(tmp_path, wandb=True)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_before_the_run(monkeypatch, name):
    monkeypatch.setattr("megatron_v2pe.train.tracking.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"the package {name} is not installed.*--logging.no-{name} does without"):
        check_writers(LoggingConfig(**{name: True}))


class Failing(MetricsWriter):
    """A writer whose every method raises what no file would."""

    def advance(self, iteration):
        raise KeyError("advance")

    def write(self, step):
        raise ValueError("a server said no")

    def write_values(self, iteration, values):
        raise RuntimeError("no")

    def add_page(self, page):
        raise TypeError("no page")

    def close(self):
        raise AssertionError("not closed")


@pytest.mark.parametrize("at_opening", [False, True])
def test_a_writer_that_raises_anything_ends_neither_run_nor_other_writers(tmp_path, monkeypatch, caplog, at_opening):
    monkeypatch.setattr(logging.getLogger("megatron_v2pe"), "propagate", True)

    class Made(Failing):
        def __init__(self, place):
            if at_opening:
                raise ConnectionResetError("gone")

    monkeypatch.setitem(WRITERS._members, "failing", Made)
    (tmp_path / PAGE).write_text("<p>")
    train(tmp_path, last=3, writers=("failing", "jsonl"))
    assert [row["iteration"] for row in read_metrics(tmp_path / METRICS)] == [1, 2, 3]
    told = [record.getMessage() for record in caplog.records if "training goes on" in record.getMessage()]
    assert len(told) == 1 and "Made" in told[0], "told once, with the writer's name"


def test_what_a_server_refuses_is_told_and_the_rest_is_sent(tmp_path, mlflow, monkeypatch, caplog):
    """The thread that sends raises nowhere; what it met comes with a later row, once."""
    monkeypatch.setattr(logging.getLogger("megatron_v2pe"), "propagate", True)
    client = sys.modules["mlflow"].MlflowClient

    def refuse(self, run, metrics=(), params=()):
        if metrics:
            raise RuntimeError("503")

    client.log_batch = refuse
    train(tmp_path, last=4, mlflow=True)
    told = [record.getMessage() for record in caplog.records if "training goes on" in record.getMessage()]
    assert len(told) == 1 and "MlflowWriter" in told[0] and "503" in told[0]
    assert mlflow[-1][0] == "set_terminated"
