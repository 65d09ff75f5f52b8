"""Progress is a bar on a terminal and plain lines elsewhere: a log file gets no carriage return, and never both."""

from __future__ import annotations

import ast
import fcntl
import io
import os
import struct
import termios
from pathlib import Path

import pytest

from megatron_v2pe.base import progress
from megatron_v2pe.base.progress import ProgressLines, duration, followed, progress_bar

ROOT = Path(__file__).parents[3]


class Clock:
    """Stands in for `time`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_without_a_terminal_there_are_plain_lines(capsys, clock):
    with progress_bar(total=3000, desc="read lines", unit="lines") as bar:
        for _ in range(30):
            clock.now += 1
            bar.update(100)
    lines = capsys.readouterr().err.split("\n")
    assert lines == [
        "read lines: 1,000 of 3,000 lines (33%), 100/s, 0:00:20 left",
        "read lines: 2,000 of 3,000 lines (67%), 100/s, 0:00:10 left",
        "read lines: 3,000 of 3,000 lines (100%), 100/s, 0:00:00 left",
        "read lines: 3,000 of 3,000 lines (100%) in 0:00:30, 100/s",
        "",
    ]


def test_a_day_of_work_has_a_line_a_minute(capsys, clock):
    with progress_bar(total=86_400, desc="encoding", unit="samples") as bar:
        for _ in range(86_400):
            clock.now += 1
            bar.update()
    assert 1_400 < capsys.readouterr().err.count("\n") < 1_500


def test_bytes_are_shown_in_their_units(capsys, clock):
    with progress_bar(total=3 << 30, desc="verify", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        clock.now += 12
        bar.update(3 << 29)
    assert capsys.readouterr().err.splitlines()[0] == "verify: 1.5 GB of 3 GB (50%), 128 MB/s, 0:00:12 left"


def test_short_work_and_other_ranks_say_nothing(capsys, clock):
    with progress_bar(total=5, desc="headers", unit="files", delay=1.0) as bar:
        bar.update(5)
    clock.now += 1
    with progress_bar(total=5, desc="headers", unit="files", disable=True) as bar:
        clock.now += 100
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_work_that_fails_is_not_told_as_done(capsys, clock):
    with pytest.raises(KeyError), progress_bar(total=5, desc="headers", unit="files") as bar:
        bar.update(1)
        raise KeyError
    assert capsys.readouterr().err == ""


def test_what_is_followed_comes_through(capsys, clock):
    assert list(followed("abc", desc="letters", unit="letters", delay=0)) == ["a", "b", "c"]
    assert "letters: 3 of 3 letters (100%)" in capsys.readouterr().err


def test_nobody_reads_the_lines(monkeypatch, clock):
    closed = io.StringIO()
    closed.close()
    bar = ProgressLines(5, "headers", "files")
    monkeypatch.setattr(progress.sys, "stderr", closed)
    clock.now += 100
    bar.update(5)
    bar.close()


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch, clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with progress_bar(total=5, desc="headers", unit="files") as bar:
        bar.update(5)
    assert "\r" in terminal.getvalue() and "headers:" in terminal.getvalue() and "5/5" in terminal.getvalue()
    assert not isinstance(bar, ProgressLines)


@pytest.mark.parametrize(
    ("size", "kind", "drawn"), [((80, 24), "xterm", True), ((0, 0), "xterm", False), ((80, 24), "dumb", False)]
)
def test_a_terminal_without_a_size_has_plain_lines(monkeypatch, size, kind, drawn):
    """As a container or a scheduler gives one; a bar would not be seen there at all."""
    reader, terminal = os.openpty()
    with open(reader, "rb"), open(terminal, "w") as stream:
        fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        monkeypatch.setattr(progress.sys, "stderr", stream)
        monkeypatch.setenv("TERM", kind)
        assert progress.on_terminal() is drawn


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.6, 730, 90_061)] == ["0:00:00", "0:01:00", "0:12:10", "25:01:01"]


def test_every_bar_comes_from_here():
    """A bar of one's own writes its carriage returns into log files."""
    own = []
    for folder in ("megatron_v2pe", "tools", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if any(name and name.partition(".")[0] == "tqdm" for name in names):
                    own.append(str(path.relative_to(ROOT)))
    assert set(own) == {"megatron_v2pe/base/progress.py"}
