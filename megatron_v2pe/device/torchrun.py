"""PyTorch's elastic launcher that opens no port to other machines, prints one message and ends with a clear status.

    python -m megatron_v2pe.device.torchrun --nproc-per-node N [options] PROGRAM [ARGUMENT ...]

On one machine the processes meet at a store that listens on loopback, at a free port unless one is named. Across
machines they meet at PyTorch's static rendezvous: a store that holds short texts, nothing of which is unpickled.
A tool of `tools/` looks at its arguments before any process is started; with `--check` that is all. SIGINT, SIGTERM,
SIGUSR1 and SIGHUP are passed on, once; a second SIGINT ends everything at once.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence

from megatron_v2pe.base import exit_status
from megatron_v2pe.base.command import run_tool
from megatron_v2pe.device import launch_checks
from megatron_v2pe.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes, wait for their end; return the status of the first that failed, else 0.

    Raises:
        V2PEError: arguments of the program that cannot be right, a port in use, or variables that several machines need
            and one lacks.
        CommunicationError: the machines did not meet.
    """
    arguments = _parser().parse_args(argv)
    launch_checks.check_arguments(arguments.program, arguments.arguments, arguments.nnodes * arguments.nproc_per_node)
    if arguments.check:
        return exit_status.FINISHED
    from megatron_v2pe.device import agent, launch  # PyTorch takes a second to import; --help need not wait

    several = arguments.nnodes > 1
    run_id = arguments.run_id or (launch.slurm_job() if several else uuid.uuid4().hex)
    if several:
        _demand(arguments, run_id)
    return agent.start(arguments, run_id)


def _demand(arguments: argparse.Namespace, run_id: str) -> None:
    """Refuse a run over several machines that lacks what they meet by."""
    given = {
        "NODE_RANK (--node-rank), this machine's number from 0 on": arguments.node_rank,
        "MASTER_ADDR (--master-addr), a name or address of the first machine that all reach": arguments.master_addr,
        "MASTER_PORT (--master-port), a port of it that is free": arguments.master_port,
        "RUN_ID (--run-id), the same on all of them and hard to guess, as `uuidgen` gives": run_id or None,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ConfigError(f"{arguments.nnodes} machines need " + "; ".join(missing))
    if not 0 <= arguments.node_rank < arguments.nnodes:
        raise ConfigError(f"NODE_RANK {arguments.node_rank} is outside {arguments.nnodes} machines")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megatron_v2pe.device.torchrun", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--nproc-per-node", "--nproc_per_node", type=_count, default=1, metavar="N", help="processes on this machine")
    add("--nnodes", type=_count, default=1, metavar="N", help="machines (default: 1)")
    add("--node-rank", "--node_rank", type=int, metavar="N", help="this machine's number; several machines need it")
    add("--master-addr", "--master_addr", metavar="HOST", help="the first machine; several machines need it")
    add("--master-port", "--master_port", type=_port, metavar="PORT", help="(default: a free one, on one machine)")
    add("--run-id", "--run_id", metavar="ID", help="the same on all machines (default: random, or the Slurm job)")
    add("--max-restarts", "--max_restarts", type=int, default=0, metavar="N", help="new starts after a failure")
    add(
        "--shutdown-seconds",
        type=int,
        default=600,
        metavar="SECONDS",
        help="for processes to save after a signal, once the first has ended (default: %(default)s)",
    )
    add("--check", action="store_true", help="only have PROGRAM look at its arguments; start nothing")
    add("program", metavar="PROGRAM")
    add("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected 1 or more")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"{value}, expected 0 (any that is free) to 65535")
    return value


if __name__ == "__main__":
    run_tool(main)
