"""V2PE's finding on a laptop: train two tiny models that differ in nothing but positions, ask, print the table.

bash examples/needle_on_a_laptop/run.sh [OUT] [--seeds K] [--parallel tp=2|cp=2|pp=2|dp=2] [--to 16]
python examples/needle_on_a_laptop/run.py OUT --smoke              every part in two minutes; learns nothing
python examples/needle_on_a_laptop/run.py OUT --parallel tp=2 --losses-of OTHER_OUT    same losses in another layout?
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "megatron.core", "sklearn", "matplotlib", "sentencepiece", "PIL", "tqdm", "rapidfuzz")
MADE_BY = "experiment.json"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 where the finding does not hold, 2 for what the user can mend."""
    sys.path.insert(0, str(ROOT))
    missing = [name for name in NEEDED if not _installed(name)]
    if missing:
        told = f"missing: {', '.join(missing)}. Run examples/needle_on_a_laptop/run.sh, which sets up .venv, or: "
        print(f"error: {told}pip install -e '.[test]'", file=sys.stderr)
        return 2
    from settings import LAYOUTS, SMOKE, Settings

    parser = argparse.ArgumentParser(
        prog="run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("out", type=Path, nargs="?", default=ROOT / "work_dirs" / "needle_on_a_laptop", help="(default: %(default)s)")
    add("--seeds", type=int, default=1, metavar="K", help="repetitions, told with mean and deviation (default: 1)")
    add("--parallel", choices=tuple(LAYOUTS), default="dp=2", help="layout of training (default: %(default)s)")
    add("--to", type=int, choices=(8, 16), default=8, help="longest prompt, times the trained length (default: 8)")
    add("--smoke", action="store_true", help="tiny sizes: shows that all parts work, learns nothing")
    add("--losses-of", type=Path, metavar="OUT", help="at the end, compare the losses with those of another run")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}, expected 1 or more")
    base = SMOKE if arguments.smoke else Settings(longest=arguments.to)
    settings = replace(base, seeds=arguments.seeds, parallel=arguments.parallel)
    os.environ.setdefault("PYTHON", sys.executable)
    out = arguments.out.absolute()

    from steps import StepError

    from megatron_v2pe.errors import V2PEError

    other = None if arguments.losses_of is None else arguments.losses_of.absolute()
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        if "," in str(out):
            raise StepError(f"{out}: a comma separates files of questions; name a folder without one")
        _settle(out, {**asdict(settings), "recipe": _recipe()})
        if other is not None:
            _check_other(out, other)
        with _locked(out):
            return _run(out, settings, other)
    except (StepError, V2PEError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(out: Path, settings: Any, other: Path | None) -> int:
    import figures
    import results
    import steps

    steps.run(out, settings)
    progress = steps.Progress(out, 0)
    lines = results.table(out, settings)
    ceilings = [cast(float, progress.result(f"seed_{seed}_vision")) for seed in range(settings.seeds)]
    known = results.levels(ceilings)
    holds, said = results.verdict(out, settings)
    text = results.markdown(lines, known, settings)
    (out / "table.md").write_text(f"{text}\n{said}\n", encoding="utf-8")
    results.write_csv(out / "table.csv", lines, settings)
    figures.by_length(out / "accuracy_by_length.png", lines, known, settings)
    figures.by_depth(out / "depth_by_length.png", out, settings)
    print(f"\n{text}\n{said}\n\n{out}: table.md, table.csv, accuracy_by_length.png, depth_by_length.png")
    if other is not None:
        print(results.compare_losses(out, other, settings))
    return 0 if holds else 1


def _settle(out: Path, settings: dict[str, Any]) -> None:
    """Note what is run in a folder, or refuse to mix it with what was run there before."""
    from steps import StepError, write_whole

    path = out / MADE_BY
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        names = sorted({*before, *settings} - {"seeds"})  # repetitions stand alone: more of them may be added
        differing = [
            f"{n} {before.get(n)} there, {settings.get(n)} now" for n in names if before.get(n) != settings.get(n)
        ]
        if differing:
            raise StepError(
                f"{out} holds another experiment: {'; '.join(differing)}. Name another folder, or remove it"
            )
        if settings["seeds"] > before["seeds"]:
            write_whole(path, json.dumps(settings, indent=1) + "\n")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StepError(f"{out} is in use and holds no experiment of this kind; name a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=1) + "\n")


def _recipe() -> str:
    """Return a fingerprint of what makes data, models and training, so that an edit does not go on with old results."""
    digest, here = hashlib.sha256(), Path(__file__).parent
    for name in (
        "training.yaml",
        "task.py",
        "pictures.py",
        "write_data.py",
        "start_model.py",
        "train_vit.py",
        "steps.py",
    ):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:16]


def _check_other(out: Path, other: Path) -> None:
    """Refuse to compare losses with a run of other settings, before this one has taken its time."""
    from steps import StepError

    if not (other / MADE_BY).is_file():
        raise StepError(f"--losses-of {other}: holds no experiment of this kind")
    ours, theirs = (json.loads((folder / MADE_BY).read_text(encoding="utf-8")) for folder in (out, other))
    may_differ = {"parallel", "seeds", "longest", "questions"}
    differing = sorted(n for n in {*ours, *theirs} - may_differ if ours.get(n) != theirs.get(n))
    if differing:
        raise StepError(f"--losses-of {other}: another experiment, its {', '.join(differing)} differ")
    if theirs["seeds"] < ours["seeds"]:
        raise StepError(f"--losses-of {other}: it has {theirs['seeds']} seeds, {ours['seeds']} are asked for")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder against a second run in it; processes that outlive this one hold it too."""
    from steps import StepError

    with open(out / "lock", "w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError(f"{out}: a run goes on there, or its processes have not ended yet") from None
        yield


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
