"""What a name on the command line stands for: a benchmark, a group of them, or a file of one's own questions.

Names are compared without regard to capitals, and `-` is `_`. Groups: `all`, `general` (what the published
`evaluate_auto.sh` runs) and those that families state (`benchmark_registry`). A file of one's own questions (`*.jsonl`)
stands beside them, see `families/own`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.benchmark import Benchmark, Mode
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.families.own.questions import SUFFIX, own_questions

_FILES = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet")
"""How names of files end that are taken for questions."""


def expand(words: Sequence[str], root: Path | None = None) -> list[str]:
    """Return the benchmarks that names, groups and published task names stand for, each once, in order.

    Args:
        words: as typed; several may stand in one, separated by commas. A file of one's own questions (`*.jsonl`)
            stands for itself.
        root: folder the paths of such files are relative to; one that is not there but here is named by its whole path,
            as a shell completes it.

    Raises:
        ConfigError: a name is unknown (suggests near ones), or two files of questions have the same name.
    """
    groups, other_names = BENCHMARKS.groups(), BENCHMARKS.other_names()
    names: dict[str, None] = {}
    for word in (part for text in words for part in text.split(",") if part.strip()):
        if word.strip().endswith(SUFFIX):
            names[_file(word.strip(), root)] = None
            continue
        typed = word.strip().lower().replace("-", "_")
        name = other_names.get(typed, typed)
        if name not in groups and name not in BENCHMARKS:
            if Path(word.strip()).is_dir():
                raise ConfigError(f"{word.strip()}: a folder; name its files of questions, {word.strip()}/*{SUFFIX}")
            if "/" in word or Path(word.strip()).suffix.lower() in _FILES:
                raise ConfigError(
                    f"{word.strip()}: questions of one's own are a JSON lines file, whose name ends in {SUFFIX}"
                )
            known, others = (*BENCHMARKS, *groups, *other_names), f"groups are {', '.join(groups)}; --list names all"
            raise ConfigError(f"{word.strip()}: no such benchmark{did_you_mean(name, known, otherwise=others)}")
        names |= dict.fromkeys(groups.get(name, (name,)))
    _check_folders(names)
    return list(names)


def _file(word: str, root: Path | None) -> str:
    """Return the path of a file of questions, below a root or as it is."""
    here = root is not None and not os.path.lexists(root / word) and os.path.lexists(word)
    return os.path.abspath(word) if here else word


def _check_folders(names: Iterable[str]) -> None:
    """Refuse two benchmarks whose answers would be kept in one folder, as only files of questions can have."""
    seen: dict[str, str] = {}
    for name in names:
        folder = create(name).name
        if folder in seen:
            raise ConfigError(f"{seen[folder]} and {name} would share the folder {folder}/ for answers; rename a file")
        seen[folder] = name
        if name.endswith(SUFFIX) and folder in BENCHMARKS:
            raise ConfigError(
                f"{name}: its answers would be kept as those of the benchmark {folder}, and scored as such; rename the "
                "file"
            )


def create(name: str, mode: Mode = "corrected", cache: Path = CACHE) -> Benchmark:
    """Return a benchmark.

    Args:
        name: of a single one, or a file of questions, as `expand` returns them.
        mode: how it asks where the published way has a defect.
        cache: folder for images that stand inside of other files.

    Raises:
        ConfigError: unknown name or mode.
    """
    if name.endswith(SUFFIX):
        return own_questions(name, mode, cache)
    constructor = BENCHMARKS.find(name)
    if constructor is None:
        raise ConfigError(f"{name}: no such benchmark")
    return constructor(mode=mode, cache=cache)
