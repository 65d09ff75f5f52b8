"""Kill evaluation at random moments, resume it each time on another number of processes, compare with a whole run.

    .venv/bin/python scripts/check_evaluation_resume.py [OUT] [--kills N] [--seed N]

Makes a tiny checkpoint and small made-up benchmarks, evaluates them undisturbed on one process, then again in a run
that is killed (SIGKILL) and resumed with two copies of the model, one process, and one copy shared by two (context
parallel) in turn. Kills come while answers are written and while the program still starts. Fails unless the second
run's answers are the first run's, up to their order, each question answered once, with the same scores.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.kill_checks import finish, run_check  # noqa: E402
from helpers.tool_runs import command, kill, started  # noqa: E402
from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark  # noqa: E402
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy  # noqa: E402

LARGE, SMALL = "chartqa_human", ("pope", "scienceqa")
"""The benchmark that is killed, and those after it."""
LAYOUTS = ((2, 1), (1, 1), (2, 2))
"""Processes, context parallel size."""
QUESTIONS, QUESTIONS_PER_KILL, REACHED = 20, 8, 0.6
"""The large benchmark: at its end are the questions earlier kills fell on, which must not be met by a second one."""
STARTUP = 8.0
"""Seconds; every third kill comes at a random moment of as many from the start."""


def main(argv: list[str] | None = None) -> int:
    """Run the check; return 0 if the two runs agree."""
    return run_check(__doc__, _check, argv)


def _check(out: Path, kills: int, moments: random.Random) -> int:
    write_checkpoint_copy(ROOT / "tests" / "golden" / "reference_checkpoint", out / "hf")
    questions = QUESTIONS + QUESTIONS_PER_KILL * kills
    _write_benchmarks(out / "data", questions)
    finish(_evaluation(out, "whole", 1, 1), out / "whole.log")
    for number, (processes, context) in zip(range(kills), itertools.cycle(LAYOUTS)):
        before = len(_answers(out / "killed"))
        step = max(1, int(questions * REACHED / kills))
        target = before + moments.randint(1, step) if number % 3 < 2 else None
        line = _evaluation(out, "killed", processes, context)
        with started(line, out / f"killed{number}.log") as process:
            began = time.monotonic()
            latest = began + (moments.uniform(0, STARTUP) if target is None else 300)
            while time.monotonic() < latest and (target is None or len(_answers(out / "killed")) < target):
                if process.poll() is not None:  # with 0 before a kill could come, on a machine that stood still
                    break
                time.sleep(0.005)
            time.sleep(0 if target is None else moments.uniform(0, 0.05))
            if process.poll():
                sys.exit(f"{out / f'killed{number}.log'}: ended by itself with status {process.returncode}")
            _kill_over_a_new_question(process, out / "killed")
        seconds, after = time.monotonic() - began, len(_answers(out / "killed"))
        circumstances = f"{processes} processes, context parallel size {context}, {seconds:.1f} s after the start"
        print(f"kill {number + 1} of {kills}: {circumstances}; {before} answers before, {after} now", flush=True)
    finish([*_evaluation(out, "killed", 2, 1), "--batch-size", "3"], out / "last.log")
    return _compare(out)


def _kill_over_a_new_question(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill an evaluation; one that asks a question which a kill has met before goes on first, lest it be given up.

    Where this process stands still, such a question comes before the kill. The evaluation is stopped for the look.
    """
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile, in whole or in part: looked at again
            first = psutil.Process(process.pid)
            _stop(first)  # it starts no others any more
            others = first.children(recursive=True)
            for one in others:
                _stop(one)
            notes = [json.loads(path.read_bytes()) for path in folder.glob("*/asking-*.json")]
            if not any(note["ended"].keys() & set(note["asking"]) for note in notes):
                kill(process)
                return
            for one in (*others, first):
                one.resume()
        time.sleep(0.02)


def _stop(process: psutil.Process) -> None:
    process.suspend()
    while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
        time.sleep(0.005)


def _write_benchmarks(root: Path, questions: int) -> None:
    for name in (LARGE, *SMALL):
        write_benchmark(root, name)
    path = root / "data" / "chartqa" / "test_human.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    many = [
        {**rows[number % len(rows)], "question_id": number, "question": f"Question {number}: which colour?"}
        for number in range(questions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in many))


def _evaluation(out: Path, name: str, processes: int, context: int) -> list[str]:
    arguments: list[Any] = ["--checkpoint", out / "hf", "--benchmarks", LARGE, *SMALL, "--root", out / "data"]
    arguments += ["--out", out / name, "--converted-dir", out / "converted", "--window", 100000, "--max-num", 2]
    arguments += ["--context-parallel-size", context]
    return command("tools/evaluate.py", *map(str, arguments), processes=0 if processes == 1 else processes)


def _answers(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of all files, in any order, with the name of their benchmark; without seconds and checksum."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/answers-*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                timed = {"seconds": None, "check": None, "check_question": None}  # checksums are of seconds too
                rows.append({"benchmark": path.parent.name, **json.loads(line), **timed})
    return rows


def _compare(out: Path) -> int:
    whole, killed = (
        sorted(_answers(out / name), key=lambda row: (row["benchmark"], row["id"])) for name in ("whole", "killed")
    )
    if whole != killed:
        differing = [pair for pair in itertools.zip_longest(whole, killed) if pair[0] != pair[1]]
        print(f"{len(whole)} answers undisturbed, {len(killed)} in the killed run; the first that differ:")
        print("\n".join(map(str, differing[0])))
        return 1
    for name in (LARGE, *SMALL):
        results = [json.loads((out / run / name / "results.json").read_text()) for run in ("whole", "killed")]
        if results[0] != results[1] or results[0]["answered"] != results[0]["questions"]:
            print(f"{name}: results differ\n{results[0]}\n{results[1]}")
            return 1
    if left := list((out / "killed").glob("*/asking-*")):
        print(f"notes were left: {left}")
        return 1
    print(json.dumps({"answers": len(whole), "differing": 0}))
    return 0


if __name__ == "__main__":
    run_tool(main)
