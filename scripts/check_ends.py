"""End a training job in every way, at random moments from its first second on; nothing is left, and it goes on.

    .venv/bin/python scripts/check_ends.py [OUT] [--kills N] [--seed N]

Trains on two processes with a reader each, once without a disturbance and once in a run that is ended again and again:
SIGKILL to the launcher, a process, a reader or all of them, Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP, half of them while the
job starts (imports, conversion, building, loading), half after a random step. Fails unless every process is gone within
thirty seconds, the status is one that docs/launching.md names for that end, there is no traceback, and the second run's
losses and gradient norms are those of the first bit for bit. About ten seconds a kill on two cores.
"""

from __future__ import annotations

import collections
import itertools
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402

from helpers.jobs import Job, job  # noqa: E402
from helpers.kill_checks import finish, run_check  # noqa: E402
from helpers.tool_runs import command, read_metrics, settings  # noqa: E402
from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset  # noqa: E402

STEPS = 160
GONE_SECONDS = 30.0
COMPARED = ("iteration", "loss", "grad_norm", "tokens", "tiles", "packs")


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


ENDS: dict[str, tuple[Callable[[Job], None], set[int]]] = {
    "launcher killed": (lambda one: one.process.kill(), {-9}),
    "rank 0 killed": (lambda one: _kill([one.ranks()[0]]), {75}),
    "rank 1 killed": (lambda one: _kill([one.ranks()[1]]), {75}),
    "a reader killed": (lambda one: _kill(one.readers()[:1]), {75}),
    "all killed": (lambda one: _kill(one.processes()), {-9}),
    "Ctrl-C": (lambda one: one.process.send_signal(signal.SIGINT), {130}),
    "SIGTERM": (lambda one: one.process.send_signal(signal.SIGTERM), {0, 143, -15}),
    "SIGUSR1": (lambda one: one.process.send_signal(signal.SIGUSR1), {0, 138, -10}),
    "SIGHUP": (lambda one: one.process.send_signal(signal.SIGHUP), {0, 129, -1}),
}
"""What ends the job -> how, and the statuses it may end with: where nothing has started yet, the signal itself."""


def main(argv: list[str] | None = None) -> int:
    """Run the check; return 0 if all held."""
    return run_check(__doc__, _check, argv)


def _check(out: Path, kills: int, moments: random.Random) -> int:
    write_checkpoint_copy(ROOT / "tests" / "golden" / "reference_checkpoint", out / "hf")
    write_dataset(out / "data")
    began = time.monotonic()
    with job(_training(out, out / "whole"), out / "whole.log") as one:
        one.until(lambda: _steps(out / "whole") > 0)
        start_up = time.monotonic() - began
        if one.end(900)[0]:
            sys.exit(one.output[-3000:])
    problems: list[str] = []
    ends: list[str] = []
    for number in range(kills):
        if not ends:
            ends = moments.sample(list(ENDS), len(ENDS))
        problems += _disturb(out, number, ends.pop(), moments, start_up, kills)
    finish(_training(out, out / "run"), out / "last.log")
    for ours, theirs in itertools.zip_longest(read_metrics(out / "run"), read_metrics(out / "whole")):
        if ours is None or theirs is None or any(ours[name] != theirs[name] for name in COMPARED):
            problems.append(f"another step than in the undisturbed run: {ours}, {theirs}")
            break
    print("\n".join([*problems, f"{kills} ends, {len(problems)} problems"]))
    return int(bool(problems))


def _disturb(out: Path, number: int, end: str, moments: random.Random, start_up: float, kills: int) -> list[str]:
    """End the run once; return what was wrong."""
    action, statuses = ENDS[end]
    log, run = out / f"end{number}.log", out / "run"
    done = _steps(run)
    with job(_training(out, run), log) as one:
        if number % 2 == 0 and end != "a reader killed":
            when = f"{(seconds := moments.uniform(0, start_up)):.1f} s after its start"
            time.sleep(seconds)
        else:
            step = done + moments.randint(1, max(1, 2 * (STEPS - done) // max(1, kills - number)))
            when = f"after step {min(step, STEPS)}"
            deadline = time.monotonic() + 300
            while _steps(run) < min(step, STEPS) and one.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        if end.endswith("killed") and one.ranks()[0].pid == one.process.pid:  # there is only the launcher so far
            end = "launcher killed"
            action, statuses = ENDS[end]
        try:
            action(one)
        except (LookupError, psutil.Error):  # it was not there yet, or no longer
            end, statuses = "launcher killed", {-9}
            one.process.kill()
        try:
            status, took = one.end(GONE_SECONDS)
        except Exception as left:  # also that the launcher itself is still there
            print(f"{number + 1}: {end} {when}: left something")
            return [f"{log}: {end} {when}: {left}"]
        tracebacks = collections.Counter(one.output.split())["Traceback"]
    print(f"{number + 1}: {end} {when}: status {status}, gone in {took:.1f} s, {_steps(run)} steps", flush=True)
    problems: list[str] = []
    if status not in statuses | {0}:  # 0: it had finished
        problems.append(f"{log}: {end} {when}: status {status}, expected one of {sorted(statuses)}")
    if tracebacks:
        problems.append(f"{log}: {end} {when}: a traceback")
    return problems


def _training(out: Path, save: Path) -> list[str]:
    changes = {"data__num_workers": 1, "train__train_steps": STEPS, "train__global_batch_size": 2}
    return command("tools/train.py", *settings(out, save, checkpoint__save_interval=3, **changes), processes=2)


def _steps(folder: Path) -> int:
    return len(read_metrics(folder)) if (folder / "logs" / "metrics.jsonl").is_file() else 0


if __name__ == "__main__":
    run_tool(main)
