"""A process that dies or hangs in the middle of a ring step ends all others in time, with a message.

The victims stop themselves at a chosen point: after their block has left and before they take the neighbour's. A slow
machine cannot be mistaken for a dead peer: start-up has a long timeout; the ring has a short one only where a frozen
victim can be noticed by nothing else, and only for the call in which it freezes. Limits leave room for a machine that
stands still for seconds; what was measured on a busy one stands beside them.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from contextlib import ExitStack

import pytest

from helpers.tool_runs import free_port, settings, started, wait_until
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset

RING_TIMEOUT = 11
KILLED_TIMEOUT = 100
RUN_TIMEOUT = 20
# Measured: killed 1.8 s and 2.3 s, the last of four ranks 4.9 s; hanging: 2.4 s more than the timeout.
LIMIT = 300

RING = """
import itertools, os, signal, sys, time, traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_v2pe.errors import CommunicationError
from megatron_v2pe.parallel.attention.block import Reference
from megatron_v2pe.parallel.attention.ring import ring_attention

rank, size, store, seconds, end, direction = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
VICTIM, LAST = size - 1, 3
CALLS = LAST * size + 1


class Deadly(Reference):
    calls = 0

    def called(self, name):
        Deadly.calls += name == direction
        if rank == VICTIM and Deadly.calls == CALLS:
            print("victim stops", flush=True)
            os.kill(os.getpid(), getattr(signal, end))

    def forward(self, *arguments):
        self.called("forward")
        return super().forward(*arguments)

    def backward(self, *arguments):
        self.called("backward")
        return super().backward(*arguments)


dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
group = dist.new_group(list(range(size)))
for number in itertools.count():
    if number == LAST:
        dist.barrier()
        group = dist.new_group(list(range(size)), timeout=timedelta(seconds=float(seconds)))
        dist.barrier()  # a rank that still connects when the victim ends would meet that end outside of the ring
    began = time.monotonic()
    query, key, value = (torch.randn(64, 2, 16).requires_grad_() for _ in range(3))
    try:
        output, _ = ring_attention(query, key, value, (40, 24), group, 0.25, Deadly())
        output.sum().backward()
    except CommunicationError:
        print(f"gave up after {time.monotonic() - began} s", flush=True)
        traceback.print_exc()
        os._exit(1)  # as the tools end: what PyTorch takes apart at an ordinary end is not waited for
"""

TOOL = """
import os, signal, sys, time
from pathlib import Path

from megatron_v2pe.base.command import run_tool
from megatron_v2pe.device import launch
from megatron_v2pe.parallel.attention.ring_exchange import Ring
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.writers import MetricsLog

victim, written = os.environ["RANK"] == "1", []


def stop():
    if victim and written:
        print("victim stops", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)


def meet():
    here = Path(__file__).parent / "imported"
    here.mkdir(exist_ok=True)
    (here / os.environ["RANK"]).touch()
    while len(list(here.iterdir())) < 2:
        time.sleep(0.02)


def before(owner, name, action):
    method = getattr(owner, name)

    def wrapped(*arguments, **keywords):
        action()
        return method(*arguments, **keywords)

    setattr(owner, name, wrapped)


before(launch, "initialize", meet)
before(MetricsLog, "write", lambda: written.append(1))
before(Ring, "pass_on", stop)
run_tool(lambda: cli.main(sys.argv[1:], RECIPES))
"""
"""The training tool, whose second process hangs after its first step.

The run's timeout is short; so its processes join only once both have imported everything.
"""


def script(folder, text):
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("size", "end", "direction"),
    [(2, "SIGKILL", "forward"), (2, "SIGSTOP", "forward"), (2, "SIGKILL", "backward"), (4, "SIGKILL", "forward")],
)
def test_a_peer_that_ends_in_mid_ring_ends_every_rank_with_a_message(tmp_path, size, end, direction):
    """The end of a rank is noticed and not waited out.

    Again where it was waited out: Gloo may forget a send to a rank that has died (`Ring.pass_on`). Under pauses at
    random that was one in 284 tries of two ranks.
    """
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        outputs = ring_of_which_one_ends(folder, size, end, direction)
        gave_up = [float(found) for output in outputs for found in re.findall(r"gave up after (\S+) s", output)]
        if end == "SIGSTOP" or max(gave_up) < KILLED_TIMEOUT:
            break
    for output in outputs:
        assert "CommunicationError: ring attention, step" in output, output[-3000:]
        assert "a neighbour no longer answers" in output or "cannot reach a neighbour" in output
    assert len(gave_up) == size - 1
    if end == "SIGSTOP":
        assert gave_up[0] > 0.9 * RING_TIMEOUT, outputs
    else:
        assert max(gave_up) < KILLED_TIMEOUT, outputs


def ring_of_which_one_ends(folder, size, end, direction):
    """Return what the other ranks have said, all of which have ended with an error."""
    path = script(folder, RING)
    logs = [folder / f"rank{rank}.log" for rank in range(size)]
    with ExitStack() as stack:
        processes = []
        for rank, log in enumerate(logs):
            seconds = RING_TIMEOUT if end == "SIGSTOP" else KILLED_TIMEOUT
            arguments = [str(part) for part in (rank, size, folder / "store", seconds, end, direction)]
            processes.append(stack.enter_context(started([sys.executable, path, *arguments], log)))
        wait_until(lambda: "victim stops" in logs[-1].read_text(errors="replace"), processes, logs[-1])
        began = time.monotonic()
        for process in processes[:-1]:
            assert process.wait(max(began + LIMIT - time.monotonic(), 0)) > 0
        took = time.monotonic() - began
    print(f"{size} ranks, {end}: {took:.1f} s")
    return [log.read_text(errors="replace") for log in logs[:-1]]


def tool_arguments(tiny, folder, minutes):
    changes = {
        "train__train_steps": 50,
        "train__global_batch_size": 2,
        "parallel__context_parallel_size": 2,
        "parallel__distributed_timeout_minutes": minutes,
    }
    return settings(tiny, folder, **changes)


@pytest.mark.slow
def test_a_training_process_that_hangs_ends_the_run_with_a_message(golden, tmp_path):
    """Started by hand, so that no launcher helps: the other one notices, says so and kills what is frozen here."""
    tiny = tiny_run(golden, tmp_path)
    path = script(tmp_path, TOOL)
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    variables = [f"MASTER_PORT={free_port()}", "MASTER_ADDR=127.0.0.1", "WORLD_SIZE=2"]
    with ExitStack() as stack:
        processes = []
        for rank, log in enumerate(logs):
            start = ["env", *variables, f"RANK={rank}", f"LOCAL_RANK={rank}", sys.executable, path]
            line = [*start, *tool_arguments(tiny, tmp_path / "run", minutes=RUN_TIMEOUT / 60)]
            processes.append(stack.enter_context(started(line, log)))
        wait_until(lambda: "victim stops" in logs[1].read_text(errors="replace"), processes, logs[1])
        status = processes[0].wait(LIMIT)  # measured: 4 s more than the timeout
        frozen = processes[1].wait(LIMIT)
    output = logs[0].read_text(errors="replace")
    assert status == 75 and frozen == -signal.SIGKILL, output[-3000:]
    assert "no sign of life from rank 1 on " in output and output.count("error: ") == 1, output[-3000:]
    assert "Traceback" not in output
    dumped = (tmp_path / "run" / "logs" / "hang-rank0.txt").read_text()
    assert "ring_attention" in dumped, dumped


def tiny_run(golden, folder):
    """A checkpoint and a data set."""
    write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf")
    write_dataset(folder / "data")
    return folder
