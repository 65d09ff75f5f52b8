"""Run functions under N processes from plain tests, with gloo on CPU or NCCL on one card; they start once and stay.

Importing the stack costs seconds of CPU per process, so a test session keeps one pool per world size and re-creates
parallel layouts inside it; all processes of all pools are forks of one that has imported it. A function is named by
module and attribute, takes picklable keyword arguments and returns something picklable; the pool returns the results in
rank order.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_IMPORTED_ONCE = ("megatron_v2pe.train.main", "megatron_v2pe.evaluate.runner", "torch._dynamo")
"""Modules that bring most of what functions import; PyTorch imports the last with the first optimizer."""
_GRACE_SECONDS = 5.0


class WorkerError(AssertionError):
    """A function raised on some rank; holds the traceback of each."""


class WorkerPool:
    """N processes joined in one process group."""

    def __init__(self, world_size: int, timeout_seconds: float = 300.0, device: str = "cpu") -> None:
        """Remember the settings; processes start at the first call.

        Args:
            world_size: processes.
            timeout_seconds: for an answer.
            device: `cpu` with gloo, or `cuda`: NCCL, all processes on the first card (`shared_card`).
        """
        self.world_size = world_size
        self.timeout_seconds = timeout_seconds
        self.device = device
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any] | str, **kwargs: Any) -> list[Any]:
        """Call `function(**kwargs)` on every rank and return the results in rank order.

        Raises:
            WorkerError: some rank raised, died or did not answer in time. Unless every rank has answered all the same,
                the pool is restarted at the next call.
        """
        if not self._processes:
            self._start()
        name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
        for pipe in self._pipes:
            pipe.send((name, kwargs))
        results, errors, answered = self._collect()
        if errors:
            if not answered:
                self.close()
            raise WorkerError(f"{name} on {self.world_size} processes:\n" + "\n".join(errors))
        return results

    def _collect(self) -> tuple[list[Any], list[str], bool]:
        """Return results, errors, and whether every rank is ready for the next call."""
        results: list[Any] = [None] * self.world_size
        errors: list[str] = []
        waiting = dict(enumerate(self._pipes))
        while waiting:
            # Where one rank has failed, others may be waiting for it in a collective, or fail in a moment themselves.
            ready = wait(waiting.values(), timeout=_GRACE_SECONDS if errors else self.timeout_seconds)
            if not ready:
                late = f"no answer from ranks {sorted(waiting)} in {self.timeout_seconds} s"
                return results, errors or [late], False
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                try:
                    failed, value = waiting.pop(rank).recv()
                except (EOFError, OSError):
                    return results, [*errors, f"rank {rank}: the process died"], False
                if failed:
                    errors.append(f"rank {rank}: {value}")
                else:
                    results[rank] = value
        return results, errors, True

    def _start(self) -> None:
        # CUDA is of no use in a fork of a process that has asked for it, as the imports do.
        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
        context.set_forkserver_preload([*_IMPORTED_ONCE])
        store = Path(tempfile.mkdtemp(prefix="v2pe_pool_")) / "store"
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, self.world_size, str(store), self.device)
            process = context.Process(target=_worker, args=arguments, daemon=False)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def close(self) -> None:
        """Stop the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()  # nothing to lose, and gloo's threads would take seconds to end
            process.join()
        self._pipes, self._processes = [], []


def shared_card(rank: int) -> dict[str, str]:
    """Return environment variables with which NCCL takes several ranks on one card.

    NCCL refuses two ranks on one device unless they look like two hosts that talk over the loopback interface. So the
    correctness of everything that NCCL carries can be shown on a single card; its speed cannot.
    """
    return {
        "NCCL_HOSTID": f"host{rank}",
        "LOCAL_RANK": "0",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1",
        "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
    }


def _worker(pipe: Connection, rank: int, world_size: int, store: str, kind: str) -> None:
    if kind == "cuda":
        os.environ.update(shared_card(rank))
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32 where layouts are compared
    from megatron_v2pe.device.device import Device

    torch.set_num_threads(1)
    os.environ.pop("RANK", None)
    device = Device(kind)
    device.activate()
    meeting = dist.FileStore(store, world_size)
    dist.init_process_group(device.backend, store=meeting, rank=rank, world_size=world_size)
    gc.freeze()
    modules = len(sys.modules)
    while True:
        try:
            name, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        torch.manual_seed(0)  # so that no result depends on what ran here before
        try:
            module, _, path = name.partition(":")
            function: Any = importlib.import_module(module)
            for part in path.split("."):
                function = getattr(function, part)
            pipe.send((False, function(**kwargs)))
        except Exception:
            report = traceback.format_exc()
            try:
                pipe.send((True, report))
            except OSError:  # the pool has given up already, because another rank failed first
                return
        # Models refer to themselves, and to process groups, each with threads that wake up again and again: of layouts
        # left to be collected some day, hundreds would be running beside the next test. What modules hold is looked at
        # once: it is all but a hundredth of what there is, and takes a third of a second.
        if len(sys.modules) != modules:
            modules = len(sys.modules)
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        else:
            gc.collect()
