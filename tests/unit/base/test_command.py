"""How tools end: statuses, one line, closed and full streams, and nothing that keeps a process alive."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_v2pe.base import exit_status
from megatron_v2pe.base.command import finished
from megatron_v2pe.errors import CheckpointError, CommunicationError, ConfigError, LostProcessError, SpaceError

ROOT = Path(__file__).parents[3]


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a"), 2),
        (FileNotFoundError(errno.ENOENT, "no such file", "a"), 2),
        (OSError(errno.ENOSPC, "no space"), 75),
        (OSError(errno.EDQUOT, "quota"), 75),
        (SpaceError("a"), 75),
        (wrapped(CheckpointError("a"), OSError(errno.ENOSPC, "no space")), 75),
        (CommunicationError("a"), 75),
        (LostProcessError("a"), 75),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(errno.EPIPE, "pipe"), 141),
        (RuntimeError("a"), 1),
        (SystemExit(7), 7),
        (SystemExit("words"), 1),
        (SystemExit(None), 0),
    ],
)
def test_statuses(error, status):
    assert exit_status.of(error) == status


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("a is 3"), 2, "error: a is 3\n"),
        (FileNotFoundError(errno.ENOENT, "no such file", "a"), 2, "error: [Errno 2] no such file: 'a'\n"),
        (OSError(errno.ENOSPC, "no space"), 75, "error: no space\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; the same command may be given again\n"),
    ],
)
def test_what_can_be_mended_is_one_line(error, status, line, capsys):
    def work():
        raise error

    assert finished(work) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("variable", "rank", "waits"), [("RANK", "0", 0), ("RANK", "3", 1), ("SLURM_PROCID", "1", 1)])
def test_a_mistake_of_all_processes_is_told_by_the_first(variable, rank, waits, monkeypatch, capsys):
    """The others wait a moment, in which their launcher ends them; one that is alone with it tells it then."""
    waited: list[float] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(variable, rank)
    monkeypatch.setattr("megatron_v2pe.base.command.time.sleep", waited.append)

    def work():
        raise ConfigError("a is 3")

    assert finished(work) == 2 and len(waited) == waits
    assert capsys.readouterr().err == "error: a is 3\n"


def test_defects_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        finished(lambda: 1 // 0)


TOOL = """
import sys, threading, time
from megatron_v2pe.base.command import run_tool

def main():
    {body}

run_tool(main)
"""


def tool(body: str, shell: str = "{}", **environ: str) -> tuple[int, str, str]:
    """Run a tool by a shell command, {} in it; return status, output and errors; fail if it does not end."""
    line = shell.replace("{}", f'"{sys.executable}" -c "$TOOL"')
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOOL": TOOL.replace("{body}", body), **environ},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("shell", "status", "errors"),
    [
        ("{} | true", 141, ""),
        ("{} > /dev/full", 75, "error: No space left on device\n"),
        ("{} >&-", 0, ""),
        ("{} <&- >/dev/null", 0, ""),
        ("{} 2>&- >/dev/null", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(shell, status, errors):
    body = "sys.stdin.read(); print('text ' * 100000); print('more', file=sys.stderr if sys.argv[1:] else sys.stdout)"
    ended, _, said = tool(body, shell.replace("{}", "{} < /dev/null") if "<&-" not in shell else shell)
    assert (ended, said) == (status, errors)


def test_a_full_device_is_noticed_at_the_very_end():
    assert tool("print('short')", "{} > /dev/full", PYTHONUNBUFFERED="") == (
        75,
        "",
        "error: standard output: No space left on device\n",
    )


def test_letters_a_terminal_lacks_are_escaped_as_json_has_them():
    body = "print(chr(34) + 'é 语 😀' + chr(34))"
    ended, output, said = tool(body, PYTHONIOENCODING="ascii")
    assert (ended, said) == (0, "") and json.loads(output) == "é 语 😀"


@pytest.mark.parametrize(
    ("body", "status"),
    [("raise ValueError('defect')", 1), ("return 3", 3), ("sys.exit('words')", 1), ("raise KeyboardInterrupt", 130)],
)
def test_no_thread_keeps_a_failed_tool_alive(body, status):
    started = "threading.Thread(target=time.sleep, args=(600,)).start(); "
    ended, _, said = tool(started + body)  # measured: 0.2 s
    assert ended == status, said
    assert ("Traceback" in said) == (status == 1 and "words" not in body)


READERS = """
    import multiprocessing, os, signal
    from multiprocessing.context import ForkProcess

    class Reader(ForkProcess):
        def kill(self):
            super().kill()
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # it is gone before this process does anything more

    def lost(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    signal.signal(signal.SIGCHLD, lost)  # as PyTorch does with the first reader
    for _ in range(2):
        Reader(target=time.sleep, args=(600,), daemon=True).start()
    return 3
"""


def test_readers_that_are_ended_are_not_taken_for_lost():
    ended, _, said = tool(READERS.strip())
    assert (ended, said) == (3, "")


def test_a_process_ends_with_its_launcher(tmp_path):
    """Whose number it is told; here a shell that is killed."""
    body = f"open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(600)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TOOL": TOOL.replace("{body}", body)}
    script = f'export MEGATRON_V2PE_LAUNCHER=$$; "{sys.executable}" -c "$TOOL"; :'
    with subprocess.Popen(["bash", "-c", script], env=environ, stderr=subprocess.PIPE) as shell:
        deadline = time.monotonic() + 120
        while not (tmp_path / "up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        began = time.monotonic()
        shell.kill()
        assert shell.stderr is not None
        shell.stderr.read()  # until the last one that has it open is gone
        assert time.monotonic() - began < 120  # measured: 0.01 s


PROGRAMS = sorted(
    path
    for folder in ("tools", "examples", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_ends_through_run_tool(program):
    """Which is what lets its output end in `| head`: also those that are no tool."""
    assert "run_tool(main)" in program.read_text()


@pytest.mark.parametrize("buffered", [True, False])
def test_an_example_whose_reader_has_gone_says_nothing(buffered):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, *([] if buffered else ["-u"]), str(ROOT / "examples" / "long_context" / "compare.py")]
    with os.fdopen(writer, "w") as closed:
        ended = subprocess.run([*line, "--help"], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert ended.returncode in (0, 141) and ended.stderr == ""
