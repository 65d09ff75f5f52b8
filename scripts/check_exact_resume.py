"""Kill training ten times at random steps, resume each time with another data parallel size and worker count, compare.

    .venv/bin/python scripts/check_exact_resume.py [OUT] [--kills N] [--seed N]

Builds a small indexed data set, trains without a stop on one process, then trains again in a run that is killed
(SIGKILL) and resumed with 1, 2 or 4 data parallel processes and 0 or 2 reader processes in turn. Fails unless the
second run's every step saw as many packs, tokens and tiles as the first run's, with the same loss and gradient norm,
epochs' ends included. About ten minutes on two cores; the tests run a sample of it.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.kill_checks import finish, run_check  # noqa: E402
from helpers.tool_runs import command, kill, read_metrics, settings, started  # noqa: E402
from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset  # noqa: E402

STEPS = 24
BATCH = 4
"""Packs per step: an epoch's 23 samples make 7 or 8 packs, so every epoch ends with a step that is filled up."""
LAYOUTS = tuple(itertools.product((1, 2, 4), (0, 2)))
"""Data parallel size, reader processes."""
CLOSE = 1e-5
"""Relative difference of losses and gradient norms between layouts (measured: 3e-7)."""


def main(argv: list[str] | None = None) -> int:
    """Run the check; return 0 if the two runs agree."""
    return run_check(__doc__, _check, argv)


def _check(out: Path, kills: int, moments: random.Random) -> int:
    write_checkpoint_copy(ROOT / "tests" / "golden" / "reference_checkpoint", out / "hf")
    write_dataset(out / "data")
    indexed = ["--out", str(out / "indexed"), "--workers", "2", *settings(out, out / "none")]
    finish(command("tools/preprocess_data.py", *indexed), out / "build.log")
    finish(_training(out, out / "whole", 1, 0), out / "whole.log")
    whole = read_metrics(out / "whole")
    done = 0
    for number, (ranks, workers) in zip(range(kills), itertools.cycle(LAYOUTS)):
        step = moments.randint(done + 1, max(done + 1, (number + 1) * STEPS // (kills + 1)))
        with started(_training(out, out / "killed", ranks, workers), out / f"killed{number}.log") as process:
            _wait_for(out / "killed", step, process, out / f"killed{number}.log")
            time.sleep(moments.uniform(0, 0.5))
            kill(process)
        done = _saved(out / "killed")
        print(f"kill {number + 1} of {kills} after step {step}: {ranks} ranks, {workers} readers; saved step {done}")
    finish(_training(out, out / "killed", 2, 2), out / "last.log")
    return _compare(whole, read_metrics(out / "killed"))


def _training(out: Path, save: Path, ranks: int, workers: int) -> list[str]:
    changes = {"data__meta_path": "", "data__indexed_path": out / "indexed", "data__num_workers": workers}
    steps = {"train__train_steps": STEPS, "train__global_batch_size": BATCH, "checkpoint__save_interval": 1}
    return command("tools/train.py", *settings(out, save, **changes, **steps), processes=ranks)


def _wait_for(folder: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while len(_rows(folder)) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            if len(_rows(folder)) >= step:
                return
            sys.exit(f"{log}: training ended or hung before step {step}\n{log.read_text()[-3000:]}")
        time.sleep(0.02)


def _rows(folder: Path) -> list[str]:
    file = folder / "logs" / "metrics.jsonl"
    return file.read_text().splitlines() if file.is_file() else []


def _saved(folder: Path) -> int:
    file = folder / "latest_checkpointed_iteration.txt"
    return int(file.read_text()) if file.is_file() else 0


def _compare(whole: list[dict[str, float]], killed: list[dict[str, float]]) -> int:
    worst = 0.0
    for ours, theirs in zip(killed, whole, strict=True):
        for name in ("iteration", "tokens", "tiles", "packs"):
            if ours[name] != theirs[name]:
                print(f"step {theirs['iteration']}: {name} {ours[name]}, undisturbed {theirs[name]}")
                return 1
        for name in ("loss", "grad_norm"):
            worst = max(worst, abs(ours[name] - theirs[name]) / abs(theirs[name]))
    print(json.dumps({"steps": len(whole), "largest relative difference of loss and gradient norm": worst}))
    return int(worst > CLOSE)


if __name__ == "__main__":
    run_tool(main)
