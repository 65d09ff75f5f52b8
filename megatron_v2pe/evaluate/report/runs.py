"""Folders `tools/evaluate.py` wrote: what a run is called, what it came from, which benchmarks it has."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.data.video import natural_key
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.families.own.questions import SUFFIX, OwnQuestions
from megatron_v2pe.evaluate.provenance import RUN, read_origin
from megatron_v2pe.evaluate.results import RESULTS, read_results
from megatron_v2pe.evaluate.scorers import Mode
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import check

_STRIDE = re.compile("[0-9]{1,9}(/[1-9][0-9]{0,8})?")


@dataclass(frozen=True)
class Own:
    """A file of the user's own questions that a run has answered."""

    name: str
    """Name of the folder of its answers."""
    file: str
    """Where it was when it was asked; a name without a folder where the run does not say."""


@dataclass(frozen=True)
class EvaluationRun:
    """One evaluated run: its folder, its settings and the benchmarks it has answers of."""

    name: str
    """Name of its row in the tables."""
    folder: Path
    settings: dict[str, Any]
    """Settings that `run.json` notes."""
    code: str
    """Version that asked."""
    benchmarks: tuple[str, ...]
    """Those with answers or results, in the order of the registry."""
    own: tuple[Own, ...] = ()
    """The user's own questions, by name."""

    @property
    def mode(self) -> Mode:
        """Return how it asked; see `benchmarks.published.Mode`."""
        return "reference" if self.settings.get("mode") == "reference" else "corrected"

    @property
    def checkpoint(self) -> str:
        """Return the fingerprint of its checkpoint; the run's own name where it is not stated."""
        return str(self.settings.get("checkpoint") or self.name)

    @property
    def stride(self) -> str:
        """Return how images are placed: a stride as `64` or `1/2`; `default` or `random`; `-` where not stated."""
        version = self.settings.get("rope_pos_id_version")
        if version == "v2pe_fix":
            return str(self.settings.get("rope_pos_id_stride", "-"))
        return {"default": "default", "v2pe_rnd": "random"}.get(str(version), "-")


def stride_order(stride: str) -> tuple[int, Fraction]:
    """Return a key by which strides are sorted: numbers by size, `default` and others behind them."""
    if _STRIDE.fullmatch(stride):
        return 0, Fraction(stride)
    return 1 if stride == "default" else 2, Fraction(0)


def open_runs(words: Sequence[str]) -> list[EvaluationRun]:
    """Open folders, each given as `FOLDER` or `NAME=FOLDER`, in the order given; one by letters becomes natural.

    Raises:
        ConfigError: two runs have one name.
        DataError: a folder is none `tools/evaluate.py` wrote, or holds nothing of any benchmark.
    """
    if [*words] == sorted(words):  # as a shell writes what `stride_*` stands for: 16 before 4
        words = sorted(words, key=natural_key)
    runs: dict[str, EvaluationRun] = {}
    for word in words:
        run = _open(word)
        if run.name in runs:
            raise ConfigError(
                f"{runs[run.name].folder} and {run.folder} are both called {run.name}: name one, NAME={run.folder}"
            )
        runs[run.name] = run
    return list(runs.values())


def _open(word: str) -> EvaluationRun:
    name, equals, path = word.partition("=")
    folder = Path(path) if equals and not Path(word).is_dir() else Path(word)
    file = folder / RUN
    if not os.path.lexists(file):
        several = sorted((printable(path.parent) for path in folder.glob("stride_*/" + RUN)), key=natural_key)
        hint = f": give {' '.join(several)}" if several else ""
        raise DataError(f"{printable(file)}: no such file; a run is a folder that tools/evaluate.py --out wrote{hint}")
    origin = read_origin(file, DataError)
    settings = {
        printable(name): printable(value) if isinstance(value, str) else value
        for name, value in origin.settings.items()
    }
    check(Mode | None, settings.get("mode"), f"{printable(file)}: settings: mode", DataError)
    found = tuple(name for name in BENCHMARKS if _has_something(folder / name))
    own = tuple(
        Own(path.name, _own_file(path))
        for path in sorted(folder.iterdir())
        if path.name not in BENCHMARKS and not path.name.startswith(".") and path.is_dir() and _has_something(path)
    )
    if not found and not own:
        raise DataError(
            f"{printable(folder)}: no answers and no {RESULTS}, neither of a benchmark nor of questions of one's own: "
            "give the evaluation's command again"
        )
    called = printable(name if folder != Path(word) else folder.resolve().name)
    return EvaluationRun(called, folder, settings, printable(origin.code), found, own)


def _own_file(folder: Path) -> str:
    """Return where the questions of a folder were read from, as its `results.json` says."""
    nowhere = f"{folder.name}{SUFFIX}"
    path = folder / RESULTS
    if not os.path.lexists(path):
        return nowhere
    results = read_results(path, OwnQuestions(Path(nowhere)))
    file = results.file if results is not None else None
    return nowhere if file is None or not file.endswith(SUFFIX) else file


def _has_something(folder: Path) -> bool:
    return (folder / RESULTS).is_file() or any(folder.glob("answers-*.jsonl"))


def read_server_scores(words: Sequence[str], runs: Sequence[EvaluationRun]) -> dict[tuple[str, str], float]:
    """Read scores a server gave, each as `RUN:BENCHMARK=PERCENT`.

    Returns:
        (run, benchmark) -> percent.

    Raises:
        ConfigError: it is written otherwise, or names a run or a benchmark that is not there.
    """
    scores: dict[tuple[str, str], float] = {}
    for word in words:
        place, _, number = word.rpartition("=")
        name, _, benchmark = place.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 100 or not name or not benchmark:
            raise ConfigError(f"--server-score {word}: it is RUN:BENCHMARK=PERCENT, such as run:mmbench_test_en=73.5")
        run = next((run for run in runs if run.name == name), None)
        if run is None:
            raise ConfigError(f"--server-score {word}: no run {name!r}, only {', '.join(run.name for run in runs)}")
        if benchmark not in run.benchmarks:
            hint = did_you_mean(benchmark, run.benchmarks)
            raise ConfigError(f"--server-score {word}: run {name} has no answers of {benchmark!r}{hint}")
        scores[name, benchmark] = value
    return scores
