"""Which steps are traced: those that a setting names, and the next one where a file asks for it."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from megatron_v2pe.train.health import profiler
from megatron_v2pe.train.health.profiler import REQUEST, StepProfiler
from megatron_v2pe.train.health.settings import HealthConfig


class Tracer:
    """In place of PyTorch's, which takes a second."""

    made: list[str]

    def __init__(self, **_):
        self.made.append("made")

    def start(self):
        self.made.append("started")

    def stop(self):
        self.made.append("stopped")

    def export_chrome_trace(self, path):
        self.made.append(path.rpartition("/")[2])


@pytest.fixture
def made(monkeypatch):
    Tracer.made = []
    monkeypatch.setattr(profiler, "profile", Tracer)
    return Tracer.made


def go(steps, tracer, begin=1):
    for step in range(begin, steps + 1):
        tracer.begin(step)
        tracer.end(step)
    tracer.close(steps)


def test_steps_by_a_setting(made, tmp_path):
    go(6, StepProfiler(HealthConfig(profile_steps="3:4"), tmp_path, 0))
    assert made == ["made", "started", "stopped", "steps-3-4-rank-0.json.gz"]


def test_a_run_that_ends_or_goes_on_within_them(made, tmp_path):
    go(3, StepProfiler(HealthConfig(profile_steps="2:9"), tmp_path, 0))
    go(12, StepProfiler(HealthConfig(profile_steps="2:9"), tmp_path, 0), begin=8)
    assert [name for name in made if name.startswith("steps")] == [
        "steps-2-3-rank-0.json.gz",
        "steps-8-9-rank-0.json.gz",
    ]


def test_ranks_that_are_not_named_and_runs_without_a_folder_trace_nothing(made, tmp_path):
    go(4, StepProfiler(HealthConfig(profile_steps="2"), tmp_path, 1))
    go(4, StepProfiler(HealthConfig(profile_steps="2"), None, 0))
    go(4, StepProfiler(HealthConfig(), tmp_path, 0))
    assert made == []


def test_a_file_asks_for_the_next_step(made, tmp_path):
    tracers = [StepProfiler(HealthConfig(profile_ranks=(0, 1)), tmp_path, rank) for rank in range(2)]
    assert not any(tracer.is_requested() for tracer in tracers)
    (tmp_path / REQUEST).touch()
    assert [tracer.is_requested() for tracer in tracers] == [True, False] and not (tmp_path / REQUEST).exists()
    for tracer in tracers:
        tracer.request(7)
        go(9, tracer, begin=7)
    assert [name for name in made if name.startswith("steps")] == [
        f"steps-7-7-rank-{rank}.json.gz" for rank in range(2)
    ]


def test_a_trace_is_one_that_viewers_read(tmp_path):
    tracer = StepProfiler(HealthConfig(profile_steps="1"), tmp_path, 0)
    tracer.begin(1)
    torch.ones(3, 3).mm(torch.ones(3, 3))
    tracer.end(1)
    content = (tmp_path / "profile" / "steps-1-1-rank-0.json.gz").read_bytes()
    assert "aten::mm" in {event.get("name") for event in json.loads(gzip.decompress(content))["traceEvents"]}
