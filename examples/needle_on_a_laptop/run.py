"""V2PE's finding on a laptop: train a tiny model with ordinary positions and with V2PE, ask both, print the table.

bash examples/needle_on_a_laptop/run.sh [OUT] [--model qwen2] [--seeds K] [--parallel tp=2|cp=2|pp=2|dp=2] [--to 16]
python examples/needle_on_a_laptop/run.py OUT --smoke              every part in tiny sizes; learns nothing
python examples/needle_on_a_laptop/run.py OUT --parallel tp=2 --losses-of OTHER_OUT    same losses in another layout?
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "megatron.core", "sklearn", "matplotlib", "sentencepiece", "tokenizers", "PIL", "tqdm", "rapidfuzz")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 where the finding does not hold, 2 for what the user can mend."""
    sys.path.insert(0, str(ROOT))
    missing = [name for name in NEEDED if not _installed(name)]
    if missing:
        advice = f"missing: {', '.join(missing)}. Run examples/needle_on_a_laptop/run.sh, which sets up .venv, or: "
        print(f"error: {advice}pip install -e '.[test]'", file=sys.stderr)
        return 2
    from settings import LAYOUTS, SMOKE, Settings

    from megatron_v2pe.workshop.synthetic.small_families import SMALL_FAMILIES

    parser = argparse.ArgumentParser(
        prog="run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("out", type=Path, nargs="?", default=ROOT / "work_dirs" / "needle_on_a_laptop", help="(default: %(default)s)")
    add("--model", choices=SMALL_FAMILIES, default=Settings.model, help="family of the model (default: %(default)s)")
    add("--seeds", type=int, default=1, metavar="K", help="repetitions, told with mean and deviation (default: 1)")
    side_by_side, *shared = LAYOUTS
    add("--parallel", choices=shared, default=side_by_side, help="layout of all training (default: %(default)s)")
    add("--to", type=int, choices=(8, 16), default=8, help="longest prompt, times the trained length (default: 8)")
    add("--smoke", action="store_true", help="tiny sizes: shows that all parts work, learns nothing")
    add("--losses-of", type=Path, metavar="OUT", help="at the end, compare the losses with those of another run")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}, expected 1 or more")
    base = SMOKE if arguments.smoke else Settings(longest=arguments.to)
    settings = replace(base, seeds=arguments.seeds, parallel=arguments.parallel, model=arguments.model)
    os.environ.setdefault("PYTHON", sys.executable)
    out = arguments.out.absolute()

    from experiment_folder import check_comparable, locked, settle
    from steps import StepError

    from megatron_v2pe.errors import V2PEError

    other = None if arguments.losses_of is None else arguments.losses_of.absolute()
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        if "," in str(out):
            raise StepError(f"{out}: a comma separates files of questions; name a folder without one")
        settle(out, asdict(settings))
        if other is not None:
            check_comparable(out, other)
        with locked(out):
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
    bindings = [cast(dict[str, Any], progress.result(f"seed_{seed}_train_short")) for seed in range(settings.seeds)]
    text = results.markdown(lines, known, results.first_stage(bindings), settings)
    (out / "table.md").write_text(f"{text}\n{said}\n", encoding="utf-8")
    results.write_csv(out / "table.csv", lines, settings)
    figures.by_length(out / "accuracy_by_length.png", lines, known, settings)
    figures.by_depth(out / "depth_by_length.png", out, settings)
    print(f"\n{text}\n{said}\n\n{out}: table.md, table.csv, accuracy_by_length.png, depth_by_length.png")
    if other is not None:
        print(results.compare_losses(out, other, settings))
    return 0 if holds else 1


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if not all(map(_installed, NEEDED)):
        sys.exit(main())
    from megatron_v2pe.base.command import run_tool

    run_tool(main)
