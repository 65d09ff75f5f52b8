"""The folder of an experiment: what is run there is noted, another experiment is refused, and so is a second run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps import StepError, write_whole

NOTE = "experiment.json"
RECIPE = ("training.yaml", "task.py", "pictures.py", "write_data.py", "start_model.py", "train_vit.py", "steps.py")
"""Files that make data, models and training: after an edit to one of them old results are not gone on with."""
MAY_GROW = frozenset({"seeds", "longest"})
"""Repetitions stand alone, longer prompts come after training: more of both may be added."""
ASKED_ONLY = frozenset({"parallel", "seeds", "longest", "questions"})
"""What does not change losses: the layout must not, the others come after training."""


def settle(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what is run in a folder, or refuse to mix it with what was run there before.

    Args:
        out: of the experiment; made if it is not there.
        settings: fields of `Settings`.

    Raises:
        StepError: the folder holds another experiment, or other things.
    """
    now, path = {**settings, "recipe": recipe()}, out / NOTE
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise StepError(f"{out} is in use and holds no experiment of this kind; name a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        _note(path, now)
        return
    before = _read(out)
    if differing := _differing(before, now, MAY_GROW):
        differences = "; ".join(f"{name} {before.get(name)} there, {now.get(name)} now" for name in differing)
        raise StepError(f"{out} holds another experiment: {differences}. Name another folder, or remove it")
    grown = {name: max(before[name], now[name]) for name in MAY_GROW}
    if any(grown[name] > before[name] for name in MAY_GROW):
        _note(path, {**now, **grown})


def check_comparable(out: Path, other: Path) -> None:
    """Refuse to compare losses with a run of other settings, before this one has taken its time.

    Raises:
        StepError: the other folder holds no experiment, another one, or fewer seeds.
    """
    if not (other / NOTE).is_file():
        raise StepError(f"--losses-of {other}: holds no experiment of this kind")
    ours, theirs = _read(out), _read(other)
    if differing := _differing(ours, theirs, ASKED_ONLY):
        raise StepError(f"--losses-of {other}: another experiment, its {', '.join(differing)} differ")
    if theirs["seeds"] < ours["seeds"]:
        raise StepError(f"--losses-of {other}: it has {theirs['seeds']} seeds, {ours['seeds']} are asked for")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder against a second run in it; processes that outlive this one hold it too.

    Raises:
        StepError: another run holds it.
    """
    with open(out / "lock", "w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError(f"{out}: a run goes on there, or its processes have not ended yet") from None
        yield


def recipe() -> str:
    """Return a fingerprint of what makes data, models and training."""
    digest, here = hashlib.sha256(), Path(__file__).parent
    for name in RECIPE:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:16]


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], ignored: frozenset[str]) -> list[str]:
    return sorted(name for name in {*before, *now} - ignored if before.get(name) != now.get(name))


def _read(out: Path) -> dict[str, Any]:
    return json.loads((out / NOTE).read_text(encoding="utf-8"))


def _note(path: Path, settings: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(settings, indent=1) + "\n")
