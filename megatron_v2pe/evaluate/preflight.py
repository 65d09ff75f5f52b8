"""What an evaluation needs beside a model: packages for scoring, and every benchmark's data; told all at once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from megatron_v2pe.errors import ConfigError, DataError, how_to_install
from megatron_v2pe.evaluate.benchmark import Benchmark

PACKAGES = ("rapidfuzz", "rouge", "english_words", "pyarrow", "openpyxl")
"""Of the `eval` extra: for scores, Parquet files and spreadsheets."""


def check_packages() -> None:
    """Check that what scoring imports is installed, before hours are spent on answers.

    Raises:
        ConfigError: packages are missing; names them and the extra they belong to.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"scoring needs {', '.join(missing)}: {how_to_install('eval')}")


def check_all(benchmarks: Sequence[Benchmark], root: Path) -> None:
    """Check the packages and the data of all benchmarks.

    Raises:
        ConfigError: see `check_packages`.
        DataError: data are missing; lists those of every benchmark, with what to download and where it goes.
    """
    check_packages()
    problems: list[str] = []
    for benchmark in benchmarks:
        try:
            benchmark.check(root)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
