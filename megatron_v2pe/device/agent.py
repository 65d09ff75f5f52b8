"""PyTorch's elastic agent, with a rendezvous on loopback, one message in place of its tables, and signals passed on.

`torchrun.py` is the command.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from megatron_v2pe.base import exit_status
from megatron_v2pe.base.orphans import LAUNCHER
from megatron_v2pe.device import launch, watchdog
from megatron_v2pe.errors import CommunicationError

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_NOTICE_SECONDS = 5.0
"""Seconds for the other processes to notice that one has failed, and to end."""

_END_SECONDS = 10.0
"""Seconds for a process to end after it was asked to; then it is killed."""

_MEET_SECONDS = 600
_STORE_TIMEOUT = timedelta(seconds=60)


class LoopbackRendezvous(RendezvousHandler):
    """A meeting on this machine alone: a store on loopback, a new one for every attempt."""

    def __init__(self, port: int, run_id: str) -> None:
        """Remember where.

        Args:
            port: 0 for any that is free.
            run_id: of the run.
        """
        self._port, self._run_id = port, run_id
        self._store: dist.TCPStore | None = None

    def get_backend(self) -> str:
        """Return the name of this way to meet."""
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        """Return whether the processes use the store of this one."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Open a new store."""
        self._store = None  # lets go of a port that was named
        self._store = store = launch.hold_store(self._port, True, _STORE_TIMEOUT)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(launch.LOOPBACK, store.port))

    def is_closed(self) -> bool:
        """Return whether no further machine may join."""
        return False

    def set_closed(self) -> None:
        """Let no further machine join; none ever does."""

    def num_nodes_waiting(self) -> int:
        """Return how many machines wait to be let in."""
        return 0

    def get_run_id(self) -> str:
        """Return the run's id."""
        return self._run_id

    def shutdown(self) -> bool:
        """Close the store."""
        self._store = None
        return True


class _NoFiles(LogsSpecs):
    """Lets processes write where this one does, without files and folders."""

    def __init__(self) -> None:
        super().__init__()

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        none = dict.fromkeys(envs, "")
        return LogsDest(none, dict(none), {}, {}, dict(none))

    @property
    def root_log_dir(self) -> str:
        return ""


class _Agent(LocalElasticAgent):
    """Starts the processes of this machine and sees to their end."""

    first: tuple[int, int] | None = None
    """The first process that failed: its rank and how it ended, negative for a signal."""
    ended: Mapping[str, Any] | None = None
    """What the processes have written about the end."""
    unsaid = False
    """Whether the process that wrote it was killed after that, and may not have come to print it."""
    asked: int = 0
    """The signal that asked for an end."""
    _asked_at = 0.0

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)  # pyright: ignore[reportCallIssue]  (decorated)
        for number in PASSED_ON:  # in place of those that end this process in the middle of something
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._pass_on)
        return started

    def _processes(self) -> dict[int, Any]:
        return {} if self._pcontext is None else getattr(self._pcontext, "subprocess_handlers", {})

    def _pass_on(self, number: int, frame: object) -> None:
        if self.asked:
            if number == signal.SIGINT and time.monotonic() - self._asked_at > 0.5:
                self._kill()
                watchdog.say("ended at once; the same command goes on from the last checkpoint")
                os._exit(exit_status.INTERRUPTED)
            return
        self.asked, self._asked_at = number, time.monotonic()
        for handler in self._processes().values():
            with suppress(ProcessLookupError):
                handler.proc.send_signal(number)

    def _kill(self) -> None:
        for handler in self._processes().values():
            if handler.proc.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(handler.proc.pid, signal.SIGKILL)  # with what it has started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {rank: handler.proc.poll() for rank, handler in self._processes().items()}
        failed = {rank: code for rank, code in codes.items() if code}
        if failed:
            self._end_all(worker_group, failed)
        return super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]  (decorated)

    def _end_all(self, worker_group: WorkerGroup, failed: Mapping[int, int]) -> None:
        """Send the other processes why one has failed, and see that they end."""
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        local, code = min(failed.items(), key=lambda item: item[1])  # those killed by a signal first
        self.first = (ranks[local], code)
        record: dict[str, Any] | None = None
        if self.asked == 0:
            told = f"rank {ranks[local]} on {socket.gethostname()} {how(code)}"
            status = exit_status.TRY_AGAIN if code < 0 else code
            record = {"rank": ranks[local], "host": socket.gethostname(), "text": told, "status": status}
            with suppress(RuntimeError, ValueError):
                store = self._watch_store(worker_group)
                self.ended = json.loads(store.compare_set(watchdog.END, "", json.dumps(record)))
        if self.asked == 0 and not self._all_end(_NOTICE_SECONDS):
            for handler in self._processes().values():  # those that have not met the others yet
                if handler.proc.poll() is None:
                    handler.proc.terminate()
        self._all_end(_END_SECONDS if self.asked == 0 else float(self._shutdown_timeout))
        self.unsaid = False
        if self.ended is not None and self.ended != record and self.ended["host"] == socket.gethostname():
            codes = {ranks[local]: handler.proc.poll() for local, handler in self._processes().items()}
            code = codes.get(self.ended["rank"], 0)
            self.unsaid = code is None or code < 0
        self._kill()
        status = self.status()
        if self.asked or status == exit_status.MEND:
            self._remaining_restarts = 0

    def _all_end(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while any(one.proc.poll() is None for one in self._processes().values()):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _watch_store(self, worker_group: WorkerGroup) -> dist.Store:
        handler = worker_group.spec.rdzv_handler
        attempt = worker_group.spec.max_restarts - self._remaining_restarts
        assert worker_group.store is not None
        store = worker_group.store
        if isinstance(store, dist.PrefixStore):
            store = store.underlying_store
        return dist.PrefixStore(launch.prefix(f"{handler.get_run_id()}/{attempt}", 1), store)

    def status(self) -> int:
        """Return what this launcher ends with."""
        if self.first is None:
            return exit_status.FINISHED
        code = self.first[1]
        if self.asked and code < 0:
            return exit_status.of_signal(self.asked)
        if self.ended is not None:
            return int(self.ended["status"])
        return exit_status.TRY_AGAIN if code < 0 else code


def how(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def start(arguments: argparse.Namespace, run_id: str) -> int:
    """Start the processes, wait for their end; return the status of the first that failed, else 0.

    Args:
        arguments: of the command.
        run_id: the same on all machines.

    Raises:
        ConfigError: a port in use.
        CommunicationError: the machines did not meet.
    """
    several = arguments.nnodes > 1
    if several:
        rendezvous: RendezvousHandler = StaticTCPRendezvous(
            arguments.master_addr,
            arguments.master_port,
            arguments.node_rank,
            arguments.nnodes,
            run_id,
            _MEET_SECONDS,
        )
        if arguments.node_rank == 0:
            launch.listener(arguments.master_port, one_machine=False).close()  # a port in use is told now
    else:
        launch.stay_on_loopback()
        rendezvous = LoopbackRendezvous(arguments.master_port or 0, run_id)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in PASSED_ON)
    logging.disable(logging.CRITICAL)  # PyTorch's account of what is said in a line here
    spec = WorkerSpec(
        role="default",
        local_world_size=arguments.nproc_per_node,
        entrypoint=os.environ.get("PYTHON_EXEC", sys.executable),
        args=("-u", arguments.program, *arguments.arguments),
        rdzv_handler=rendezvous,
        max_restarts=arguments.max_restarts,
        monitor_interval=0.1,
        master_addr=arguments.master_addr if several else None,
        master_port=arguments.master_port if several else None,
        local_addr=None if several else launch.LOOPBACK,
    )
    agent = _Agent(spec, _NoFiles(), shutdown_timeout=arguments.shutdown_seconds)
    return _run(agent)


def _run(agent: _Agent) -> int:
    try:
        result = cast(RunResult | None, agent.run())
    except SignalException as signalled:
        return exit_status.of_signal(signalled.sigval)
    except (dist.DistError, TimeoutError) as error:
        raise CommunicationError(
            f"the machines of this run did not meet within {_MEET_SECONDS} s: was the same command started on all, "
            f"with the same MASTER_ADDR, MASTER_PORT and RUN_ID? ({next(iter(str(error).splitlines()), '')})"
        ) from error
    failed = result is not None and (result.is_failed() or result.state is WorkerState.UNHEALTHY)
    status = agent.status() if failed else exit_status.FINISHED
    if failed and agent.unsaid and agent.ended is not None:
        watchdog.say(f"error: {agent.ended['text']} [rank {agent.ended['rank']} on {agent.ended['host']}]")
    if status == exit_status.MEND:  # a process has said what, and its message stays the last
        return status
    if status and not (agent.asked and status >= 128):
        ended, first = agent.ended, agent.first
        who = (
            f"rank {ended['rank']} on {ended['host']}"
            if ended
            else f"rank {first[0] if first else '?'} on {socket.gethostname()}"
        )
        own = first is not None and (ended is None or ended["rank"] == first[0])
        why = how(first[1]) if first and own else f"ended with status {status}"
        watchdog.say(f"error: {who} {why}; this job ends with {status}: {exit_status.in_words(status)}")
    elif status:
        watchdog.say(f"stopped by {signal.Signals(agent.asked).name}: {exit_status.in_words(status)}")
    return status
