"""What reaches a terminal: no control character of a model or a file, no traceback over letters it lacks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_v2pe.base.logging import get_logger, setup_logging
from megatron_v2pe.errors import DataError
from megatron_v2pe.generate.jsonl import read_questions

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
PRINTS = """
import io, sys
sys.argv = ["tool"]
from megatron_v2pe.base.command import finished, run_tool
from megatron_v2pe.errors import DataError
def work():
    print("\\u56fe \\u202e", flush=True)
    raise DataError("\\x1b[2J\\u56fe")
run_tool(lambda: finished(work))
"""


def test_an_ascii_terminal_and_escapes_in_an_error():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    found = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, env=environment, timeout=600)
    assert found.returncode == 2 and b"Traceback" not in found.stderr
    assert found.stdout == b"\\u56fe \\u202e\n" and found.stderr == b"error: \\x1b[2J\\u56fe\n"


def test_log_lines_are_printable(capsys):
    logger = logging.getLogger("megatron_v2pe")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        setup_logging()
        get_logger("test").info("file %s", ESCAPE)
        assert "file \\x1b]0;owned\\x07\\x1b[2J" in capsys.readouterr().err
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": "a", "image": 0}, "image: found 0, expected text"),
        ({"prompt": "a", "image": [1]}, "image: found a list, expected text"),
        ({"prompt": ["a"]}, "prompt: found a list, expected text"),
        ({"prompt": "a", "id": None, "image": {}}, "image: found an object"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\]: field 'value' is missing"),
        ({"conversations": ["a"]}, "conversations"),
        ({"id": ESCAPE, "conversations": []}, "neither prompt nor conversations"),
        ({"prompt": "\ud800"}, "holds half a character"),
        ([1], "expected an object"),
    ],
)
def test_lines_of_generates_input(tmp_path: Path, line, told):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=f"in.jsonl:2.*{told}") as caught:
        read_questions(path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"\xff", b'{"prompt": NaN}'])
def test_bombs_in_generates_input(tmp_path: Path, content):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="in.jsonl:1"):
        read_questions(tmp_path / "in.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: a pipe, expected a regular file"):
        read_questions(tmp_path / "pipe")
