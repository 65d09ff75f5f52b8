"""Every end is an end: whatever ends one process, all are gone soon, with one message and a status that says what next.

Times are from the cause to the moment no process of the job is left; beside the limit stands what was measured. What
keeps a process alive lasts longer than the limit, so that a slow machine is told from a job that does not end.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from helpers.held_runs import held
from helpers.jobs import job
from helpers.tool_runs import command, free_port, read_metrics, run, settings
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset

PROBE = str(Path(__file__).parent / "ends_probe.py")
LAUNCHER = [sys.executable, "-m", "megatron_v2pe.device.torchrun"]
GONE = 120.0
"""Seconds within which nothing of a job may be left; measured: 0.2 s to 2 s, with a hang 5 s more than its limit."""

STOOD_STILL = "no sign of life from rank"
"""Said where a process did not run for seconds; also of one that the machine held up just when others looked."""

STEPS = 24


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("mend", 2, "error: a.jsonl:3: no such image [rank 1 on "),
        ("defect", 1, "error: RuntimeError: not what was meant [rank 1 on "),
        ("killed", 75, "was killed by SIGKILL"),
        ("stuck", 75, "error: nothing moved for 11 s (rank 0: about to end; rank 1: about to end) [seen by rank 0 on "),
    ],
)
def test_an_end_of_one_is_the_end_of_all(how, status, said, tmp_path):
    for attempt in range(3):  # again where the machine has stood still, which is another end
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with job([*LAUNCHER, "--nproc-per-node", "2", PROBE, how, str(folder)], folder / "log") as one:
            one.until((folder / "about-to-end").exists)
            ended = one.end(GONE)[0]
            output = one.output
        dumped = [(folder / f"hang-rank{rank}.txt").exists() for rank in range(2)]
        if STOOD_STILL not in output and (how != "stuck" or all(dumped)):  # else the launcher has ended one that stood
            break
    assert ended == status, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len([line for line in lines if said in line]) == 1, output
    verdict = lines[-1]
    if how == "mend":  # what has to be mended stays the last line on the screen
        assert said in verdict and output.rstrip().endswith(verdict)
    else:
        assert verdict.startswith("error: rank ") and f"this job ends with {status}: " in verdict
    # Of one that was killed the launcher tells, unless the other has noticed first.
    assert len(lines) in {"mend": (1,), "killed": (1, 2)}.get(how, (2,)), output
    assert ("Traceback" in output) == (how == "defect")
    for rank in range(2):
        file = folder / f"hang-rank{rank}.txt"
        assert file.exists() == (how == "stuck")
        if how == "stuck":
            assert "ends_probe.py" in file.read_text() and f"what rank {rank} on " in output


def test_a_port_another_program_holds_is_told_by_every_rank(tmp_path):
    """Of a run started by hand: the first finds it taken, the second that nobody answers there."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        place = [f"MASTER_PORT={port}", "MASTER_ADDR=127.0.0.1", "WORLD_SIZE=2", "RANK=0"]
        first = run(["env", *place, sys.executable, PROBE, "none", str(tmp_path)], tmp_path / "log")
    assert first.status == 2, first.output
    assert first.output.count("error: ") == 1 and f"error: port {port} on " in first.output
    assert "leave MASTER_PORT away, or set it to one that is free" in first.output


def test_two_runs_at_one_port_do_not_mix(tmp_path):
    """The second process that says it is rank 1 is refused, whoever started it."""
    place = [f"MASTER_PORT={free_port()}", "MASTER_ADDR=127.0.0.1", "WORLD_SIZE=3"]
    line = [sys.executable, PROBE, "none", str(tmp_path)]
    with (
        job(["env", *place, "RANK=0", *line], tmp_path / "log0"),
        job(["env", *place, "RANK=1", *line], tmp_path / "log1") as one,
        job(["env", *place, "RANK=1", *line], tmp_path / "log2") as other,
    ):
        deadline = time.monotonic() + GONE
        while one.process.poll() is None and other.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = one if one.process.poll() is not None else other
        assert refused.end(GONE)[0] == 2, refused.output
        assert "two processes of rank 1 meet at 127.0.0.1:" in refused.output


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, golden):
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf")
    write_dataset(folder / "data")
    return folder


def training(tiny, save, *, processes=2, **changes):
    """Return the command line of a run that saves after every fourth step."""
    values = {
        "train__train_steps": STEPS,
        "train__global_batch_size": 2,
        "checkpoint__save_interval": 4,
        "checkpoint__keep_latest": 2,
        "data__num_workers": 0,
        **changes,
    }
    return command("tools/train.py", *settings(tiny, save, **values), processes=processes)


def steps_done(save):
    return len(read_metrics(save)) if (save / "logs" / "metrics.jsonl").exists() else 0


@pytest.mark.slow
def test_a_run_ended_in_every_way_goes_on_to_the_same_losses(tiny, tmp_path):
    """One run: Ctrl-C, its launcher killed while it starts, a reader killed, and to its end without readers.

    Measured: 33 s in all, on two busy cores.
    """
    whole, save, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run(training(tiny, whole), tmp_path / "whole.log").status == 0
    line, with_readers = training(tiny, save), training(tiny, save, data__num_workers=1)

    with held(3, tmp_path / "held") as setting, job([*with_readers, setting], log) as one:
        one.until((tmp_path / "held" / "held").exists)
        listening = one.listeners()
        assert listening and set(listening) <= {"127.0.0.1", "::1"}, listening
        one.process.send_signal(signal.SIGINT)
        assert one.end(GONE)[0] == 130, one.output
        assert "stopping: this step is finished and saved" in one.output and "Traceback" not in one.output
    last = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert last == steps_done(save) < STEPS

    with held(last + 1, tmp_path / "held") as setting, job([*line, setting], log) as one:  # so that it does not finish
        one.until(lambda: len(one.ranks()) == 2)
        one.process.kill()
        one.end(GONE)

    with held(last + 2, tmp_path / "held") as setting, job([*with_readers, setting], log) as one:
        one.until((tmp_path / "held" / "held").exists)
        one.readers_of(1)[0].kill()
        (tmp_path / "held" / "go").touch()
        assert one.end(GONE)[0] == 75, one.output
        assert one.output.count("a reader process has ended without a word") == 1 and "Traceback" not in one.output

    finished = run(line, log)
    assert finished.status == 0, finished.output[-3000:]
    names = ("iteration", "loss", "grad_norm", "tokens", "tiles", "packs")
    assert [[row[name] for name in names] for row in read_metrics(save)] == [
        [row[name] for name in names] for row in read_metrics(whole)
    ]
