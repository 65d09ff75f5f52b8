"""What a run tells: rows are a step's own, rates shown leave out the first step, a line a step without a terminal."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from megatron_v2pe.base.logging import keep_log, setup_logging
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.config import LoggingConfig
from megatron_v2pe.train.metrics import LoggedStep, Rates, StepMetrics
from megatron_v2pe.train.metrics_file import METRICS, read_metrics
from megatron_v2pe.train.writers import WRITERS, MetricsLog, MetricsWriter, check_writers


def step(number, seconds, tflops=50.0, mfu: float | None = 0.25):
    return StepMetrics(
        iteration=number,
        loss=1.0,
        lr=1e-3,
        grad_norm=2.0,
        tokens=1000,
        tiles=10,
        packs=1,
        seconds=seconds,
        tokens_per_second=1000 / seconds,
        tiles_per_second=10 / seconds,
        memory_gib=1.0,
        tflop=tflops * seconds,
        tflops_per_device=tflops,
        mfu=mfu,
    )


@pytest.fixture
def log(tmp_path):
    made = MetricsLog(LoggingConfig(tensorboard=False, log_interval=2), tmp_path, 0, 0, 5, device="a card; 1 rank")
    yield made
    made.close()


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("megatron_v2pe"), "propagate", True)
    caplog.set_level(logging.INFO, "megatron_v2pe")
    return lambda: [record.getMessage() for record in caplog.records]


def test_the_first_step_is_no_part_of_the_rates_that_are_shown(log, lines):
    for number, seconds in enumerate((100.0, 2.0, 2.0, 1.0, 1.0), 1):
        log.write(step(number, seconds))
    shown = lines()
    assert ["500 tok/s, 5.0 tiles/s, 50 TFLOP/s (25.0% MFU)" in text for text in shown] == [True, False, False]
    assert "667 tok/s" in shown[1], "steps 3 and 4 together: 2,000 tokens in 3 s"
    assert "1,000 tok/s" in shown[2]
    assert log.rates() == "667 tok/s, 6.7 tiles/s, 50 TFLOP/s (25.0% MFU) over 4 steps"


def test_without_a_terminal_a_step_is_one_plain_line(log, lines, capsys):
    for number in range(1, 6):
        log.write(step(number, 60.0))
    first, second, last = lines()
    assert first == (
        "step 2/5  loss 1.0000  lr 1.00e-03  grad norm 2.00  17 tok/s, 0.2 tiles/s, 50 TFLOP/s (25.0% MFU)  1.0 GiB  "
        "ETA 0:03:00"
    )
    assert second.startswith("step 4/5  ") and last.startswith("step 5/5  ") and last.endswith("ETA 0:00:00")
    assert "\r" not in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar_and_its_lines_go_to_the_file_alone(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.getLogger("megatron_v2pe")
    before = list(logger.handlers), logger.propagate, logger.level
    try:
        setup_logging()
        with keep_log(tmp_path / "train.log"):
            logger.info("model: a folder")
            log = MetricsLog(LoggingConfig(jsonl=False, tensorboard=False), None, 0, 0, 2)
            log.write(step(1, 1.0))
            logger.warning("look at this")
            log.write(step(2, 1.0))
            log.close()
        logger.info("after the block")
    finally:
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
    kept = [line.split(" ", 3)[3] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert [line.split("  ")[0] for line in kept] == ["model: a folder", "step 1/2", "look at this", "step 2/2"]
    shown = terminal.getvalue()
    assert "model: a folder" in shown and "look at this" in shown and "after the block" in shown
    assert "step 1/2" not in shown and "2/2" in shown and "loss 1.0000" in shown


def test_a_log_that_cannot_be_written_is_told_once(tmp_path, capsys):
    logger = logging.getLogger("megatron_v2pe")
    with keep_log(tmp_path / "train.log"):
        kept = logger.handlers[-1]
        assert isinstance(kept, logging.FileHandler)
        kept.stream.close()
        for _ in range(3):
            kept.handle(logger.makeRecord("a", logging.INFO, "", 0, "text", (), None))
    assert capsys.readouterr().err.count("train.log is not written, the work goes on") == 1


def test_a_row_is_the_steps_own_and_the_first_says_that_it_warms_up(tmp_path):
    log = MetricsLog(LoggingConfig(tensorboard=False), tmp_path, 0, 0, 3, device="a card; 1 rank")
    for number, seconds in enumerate((100.0, 2.0, 2.0), 1):
        log.write(step(number, seconds, mfu=None))
    log.close()
    written = rows(tmp_path)
    assert [row["warm_up"] for row in written] == [True, False, False]
    assert [row["tokens_per_second"] for row in written] == [10.0, 500.0, 500.0]
    assert [row.get("device") for row in written] == ["a card; 1 rank", None, None]
    assert all(row["mfu"] is None and row["tflops_per_device"] == 50.0 for row in written)


def test_before_there_is_a_rate_and_without_a_peak():
    rates = Rates()
    assert rates.words() == "warming up"
    rates.add(step(2, 4.0, tflops=0.01234, mfu=None))
    assert rates.words() == "250 tok/s, 2.5 tiles/s, 0.0123 TFLOP/s"


def test_tensorboard_has_no_rates_of_the_first_step(tmp_path):
    log = MetricsLog(LoggingConfig(jsonl=False), tmp_path, 0, 0, 2)
    added = []

    class Board:
        def add_scalar(self, name, value, iteration):
            added.append((name, iteration))

        def close(self):
            """Nothing is open."""

    log._writers[-1]._board = Board()  # pyright: ignore[reportAttributeAccessIssue]
    for number in (1, 2):
        log.write(step(number, 1.0))
    log.close()
    assert ("train/loss", 1) in added and ("train/mfu", 1) not in added and ("train/tokens_per_second", 1) not in added
    assert {("train/mfu", 2), ("train/tflops_per_device", 2), ("train/tokens_per_second", 2)} <= set(added)


class ListWriter(MetricsWriter):
    """A writer from outside."""

    opened: ClassVar[list[ListWriter]] = []

    def __init__(self, place):
        self.place, self.steps, self.done, self.is_closed = place, [], [], False
        self.opened.append(self)

    @classmethod
    def check(cls):
        cls.opened.clear()

    def advance(self, iteration):
        self.done.append(iteration)

    def write(self, step):
        self.steps.append(step)

    def close(self):
        self.is_closed = True


def test_a_writer_from_outside_gets_what_ours_get(tmp_path, monkeypatch):
    WRITERS.names()
    monkeypatch.setitem(WRITERS._members, "list", ListWriter)
    config = LoggingConfig(tensorboard=False, log_interval=2, writers=("list", "jsonl"))
    check_writers(config)
    log = MetricsLog(config, tmp_path, 0, 3, 6)
    for number in (4, 5, 6):
        log.write(step(number, 1.0))
    log.close()
    (writer,) = ListWriter.opened
    assert (writer.place.folder, writer.place.start, writer.place.last) == (tmp_path, 3, 6)
    assert writer.done == [4, 5, 6] and [one.iteration for one in writer.steps] == [4, 6] and writer.is_closed
    assert [one.row["iteration"] for one in writer.steps] == [row["iteration"] for row in rows(tmp_path)]
    last = writer.steps[1]
    assert isinstance(last, LoggedStep) and (last.recent.steps, last.whole.steps) == (2, 2)


def test_a_writer_that_is_none_is_refused_before_a_run_starts():
    with pytest.raises(ConfigError, match="no log writer 'tensorbord'; did you mean tensorboard"):
        check_writers(LoggingConfig(writers=("tensorbord",)))


def test_a_plug_in_adds_a_writer_by_a_file_of_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "my_writers_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "writer.py").write_text(PLUG_IN)
    monkeypatch.setenv("MEGATRON_V2PE_PLUGINS", str(folder))
    monkeypatch.setattr(WRITERS, "_members", dict(WRITERS._members))
    log = MetricsLog(LoggingConfig(tensorboard=False, jsonl=False, writers=("losses",)), tmp_path, 0, 0, 2)
    for number in (1, 2):
        log.write(step(number, 1.0))
    log.close()
    assert (tmp_path / "losses.txt").read_text() == "1 1.0\n2 1.0\n"


PLUG_IN = """
from megatron_v2pe.train.writers import WRITERS, MetricsLog, MetricsWriter, check_writers


@WRITERS.register("losses")
class Losses(MetricsWriter):
    def __init__(self, place):
        self.file = (place.folder / "losses.txt").open("a")

    def write(self, step):
        self.file.write(f"{step.iteration} {step.row['loss']}\\n")

    def close(self):
        self.file.close()
"""


def test_values_of_work_after_a_step_are_in_its_row_or_added_to_it(tmp_path, monkeypatch):
    """Validation of a step that a request to stop has ended is done by the next process.

    Event files of one second and process are read in the order of their numbers as text: 9 would come after 10.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    log = MetricsLog(LoggingConfig(log_interval=10), tmp_path, 0, 0, 3)
    log.write(step(1, 1.0))
    log.write(step(2, 1.0), {"validation/loss": 2.5})
    log.write(step(3, 1.0))
    log.close()
    log = MetricsLog(LoggingConfig(), tmp_path, 0, 3, 4)
    log.add(3, {"validation/loss": 2.25})
    log.write(step(4, 1.0))
    log.close()
    found = read_metrics(tmp_path / METRICS, numbers=["loss"])
    assert [(row["iteration"], row.get("validation/loss")) for row in found] == [(2, 2.5), (3, 2.25), (4, None)]
    assert all("loss" in row for row in found)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("validation/loss")
    assert [(event.step, event.value) for event in events] == [(2, 2.5), (3, 2.25)]


def test_values_that_are_no_numbers_leave_rows_that_can_be_read(tmp_path, log):
    log.write(step(1, 1.0), {"health/weight_norm/language_model": float("nan"), "validation/loss": 2.0})
    log.add(1, {"evaluation/one": float("inf"), "evaluation/two": 1.0})
    (found,) = read_metrics(tmp_path / METRICS)
    assert found["health/weight_norm/language_model"] is None
    assert (found["validation/loss"], found["evaluation/two"]) == (2.0, 1.0) and "evaluation/one" not in found
