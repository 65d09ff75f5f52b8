"""A benchmark's folder from outside: what is wrong with its names, its questions or its scorer is named."""

from __future__ import annotations

import sys

import pytest

from megatron_v2pe.base.plugins import VARIABLE
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark_registry import BenchmarkRegistry
from megatron_v2pe.evaluate.scorer_names import scorer_of

QUESTIONS = """
from megatron_v2pe.evaluate.benchmark import Benchmark
from outside_registry import REGISTRY

@REGISTRY.register({names})
class Asked(Benchmark): ...
"""
SCORER = """
from megatron_v2pe.evaluate.scorers.base import Scorer, mean_summary, percent_of

def judge(item):
    return {result}

SCORERS = (Scorer("{name}", judge, judge, mean_summary("accuracy"), percent_of("accuracy")),)
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Write one file of a benchmark's folder, which the environment variable names."""
    names = []

    def make(name, part, text):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / f"{part}.py").write_text(text)
        monkeypatch.setenv(VARIABLE, str(folder))
        names.append(name)
        return folder / f"{part}.py"

    yield make
    for module in [module for module in sys.modules if module.partition(".")[0] in names]:
        del sys.modules[module]


@pytest.fixture
def registry(monkeypatch):
    """Find one anew; benchmarks of this project are not in it."""
    registry = BenchmarkRegistry()
    registry._builtin = "megatron_v2pe.families"  # has no questions.py
    module = type(sys)("outside_registry")
    module.REGISTRY = registry
    monkeypatch.setitem(sys.modules, "outside_registry", module)
    return registry


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("'taken'", "benchmark 'taken': a group of benchmarks is called so already; rename the benchmark"),
        ("'other'", "benchmark 'other': another name of known is called so already"),
        ("'mine', 'other'", "'other' stands for benchmark 'known' already; give 'mine' another"),
        ("'mine', 'My-Other'", "name 'My-Other': names are compared in small letters, with '_' for '-'"),
    ],
)
def test_a_name_that_would_not_be_asked_is_refused(outside, registry, names, message):
    registry.group("taken", "known")
    registry.also("known", "other")
    outside("outside_names", "questions", QUESTIONS.format(names=names))
    with pytest.raises(ConfigError, match=message):
        registry.names()


def test_what_makes_no_benchmark_is_refused(registry):
    with pytest.raises(ConfigError, match="benchmark 'mine' is 3, expected a class or a function"):
        registry.add("mine", 3)


def test_a_scorer_file_without_scorers_is_refused(outside):
    path = outside("outside_none", "scorer", "")
    with pytest.raises(ConfigError, match=f"{path}: SCORERS is missing"):
        scorer_of("chartqa")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("item['nothing of this name']", "fails at .*: KeyError: 'nothing of this name'"),
        ("1.0", "returns 1.0, expected a 'score' from 0 to 1"),
        ("{'score': 7}", "returns {'score': 7}, expected a 'score' from 0 to 1"),
    ],
)
def test_a_scorer_that_fails_is_named(outside, result, message):
    """The published code may stop at an answer in reference mode; a scorer may not in corrected mode."""
    path = outside("outside_scorer", "scorer", SCORER.replace("{result}", result).replace("{name}", "outside"))
    with pytest.raises(DataError, match=f"{path}: scorer 'outside' {message}"):
        scorer_of("outside").judge({"prediction": "a"}, "corrected")
