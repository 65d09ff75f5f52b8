"""Which benchmarks a run asks: their names, packages, scorers and data, looked at before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark import Benchmark, Question, check_all
from megatron_v2pe.evaluate.benchmark_names import create, expand
from megatron_v2pe.evaluate.sample import drawn
from megatron_v2pe.evaluate.scorer_names import scorer_of
from megatron_v2pe.train.evaluation.settings import EvaluationConfig

TAKEN = ("failed", "failed_questions", "seconds", "memory_gib")
"""What follows `evaluation/` in the names of numbers that are not scores."""


@dataclass(frozen=True)
class Asked:
    """A benchmark with the questions that a run asks of it."""

    benchmark: Benchmark
    questions: list[Question]
    total: int
    """Questions that the benchmark has."""

    @property
    def limit(self) -> int | None:
        """Return the number of questions where it is not all of them."""
        return len(self.questions) if len(self.questions) < self.total else None


def chosen(settings: EvaluationConfig) -> list[Benchmark]:
    """Return the benchmarks that the settings name, once packages and data of all of them were found.

    Raises:
        ConfigError: an unknown name, a benchmark without a scorer here, a package that is missing.
        DataError: data are missing; names each benchmark with its files and where they come from.
    """
    root = Path(settings.root)
    try:
        found = [create(name, settings.mode) for name in expand(settings.benchmarks, root)]
    except ConfigError as error:
        raise ConfigError(f"evaluation.benchmarks: {error}") from error
    for benchmark in found:
        if benchmark.scorer is None:
            raise ConfigError(
                f"evaluation.benchmarks: {benchmark.name} is scored by a server, and gives no score while training; "
                "ask a checkpoint by tools/evaluate.py, which writes the file for the server"
            )
        scorer_of(benchmark.scorer)
        if benchmark.name in TAKEN:
            raise ConfigError(
                f"evaluation.benchmarks: evaluation/{benchmark.name} is the name of another number of an evaluation; "
                "rename the file"
            )
    try:
        check_all(found, root)
    except DataError as error:
        text = str(error)
        listed = f"\n{indent(text, '  ')}" if "\n" in text else f" {text}"
        raise DataError(f"evaluation.benchmarks, below evaluation.root {settings.root}:{listed}") from error
    return found


def read(settings: EvaluationConfig) -> list[Asked]:
    """Read the questions of all benchmarks, and draw those that are asked.

    Raises:
        ConfigError: see `chosen`.
        DataError: see `chosen`; or a file is damaged, or holds no question; names file and line.
    """
    found: list[Asked] = []
    for benchmark in chosen(settings):
        questions = list(benchmark.questions(Path(settings.root)))
        if not questions:
            raise DataError(f"evaluation.benchmarks: {benchmark.name} has no questions below {settings.root}")
        kept = drawn(benchmark.name, questions, settings.samples, settings.seed)
        found.append(Asked(benchmark, kept, len(questions)))
    return found
