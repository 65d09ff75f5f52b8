"""What a launcher refuses before it starts any process: it has the program look at its arguments first, once.

A program of `tools/` that has a function `check(arguments, processes)` is asked: what a user can mend is then one
message of one process, in place of one of each, and nothing has been started. Other programs are started as they are.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_v2pe.base.logging import quiet_expected_warnings
from megatron_v2pe.base.orphans import under_launcher
from megatron_v2pe.base.suggest import nearest
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable

TOOLS = Path(__file__).resolve().parents[2] / "tools"

_launching = False
"""Whether a launcher has a tool look at its arguments."""


def how_to_start(processes: int) -> str:
    """Return the command that starts this program with so many processes, as the end of a message."""
    if "--dry-run" in sys.argv:
        return f"; look at it with --ranks {processes}"
    if _launching or under_launcher():
        return (
            f"; start {processes} processes: --nproc-per-node {processes}, or GPUS={processes} for a script of scripts/"
        )
    program = Path(sys.argv[0])
    known = program.suffix == ".py" and program.resolve().parent == TOOLS
    words = printable(shlex.join(sys.argv)) if known else "tools/TOOL.py ..."
    return (
        f"; start {processes} processes: python -m megatron_v2pe.device.torchrun --nproc-per-node {processes} {words}"
    )


def check_arguments(program: str, arguments: Sequence[str], processes: int) -> None:
    """Have a tool of this checkout check its arguments as if it ran with so many processes.

    Args:
        program: path of what is to be started.
        arguments: its arguments.
        processes: number of processes of the whole run, on all machines.

    Raises:
        V2PEError: something has to be mended first.
        SystemExit: an argument that is none (2), or a question that is answered now, such as `--help` (0).
    """
    path = Path(program)
    if path.suffix == ".py" and not path.exists():
        near = nearest(path.stem, [one.stem for one in TOOLS.glob("*.py")], 1)
        hint = f"; did you mean {printable(str(path.with_name(f'{near[0]}.py')))}?" if near else ""
        raise ConfigError(f"{printable(program)}: no such program{hint}")
    if path.suffix != ".py" or path.resolve().parent != TOOLS or not path.is_file():
        return
    spec = importlib.util.spec_from_file_location(f"launch_checks_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    global _launching
    given = sys.argv
    sys.argv = [program, *arguments]  # messages that repeat the command have the tool's
    _launching = True
    quiet_expected_warnings()
    try:
        spec.loader.exec_module(tool)
        if (check := getattr(tool, "check", None)) is not None:
            check(list(arguments), processes)
    finally:
        sys.argv, _launching = given, False
