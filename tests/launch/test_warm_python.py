"""The Python of tests whose imports are done: commands run by it behave as those of the ordinary one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from helpers.warm_python import shared_warm_python


@pytest.fixture(scope="module")
def warm():
    return shared_warm_python()


SCRIPT = """
import atexit, os, sys

atexit.register(print, "at the end")
print(sys.argv[1:], os.environ["COLOUR"], os.getcwd(), sys.stdin.read(), __name__, "torch" in sys.modules)
print("aside", file=sys.stderr)
if "fails" in sys.argv:
    raise ValueError("broken")
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("arguments", [["0"], ["7", "two words"], ["0", "fails"]])
def test_a_script_sees_what_it_would_see(warm, tmp_path, arguments):
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = {"cwd": tmp_path, "env": {"COLOUR": "red", "PATH": ""}, "input": "typed", "text": True}
    cold = subprocess.run([sys.executable, "script.py", *arguments], capture_output=True, **settings)
    seen = subprocess.run(["/bin/sh", warm, "script.py", *arguments], capture_output=True, **settings)
    assert seen.returncode == cold.returncode
    assert seen.stdout == cold.stdout.replace("False", "True") and "red" in seen.stdout and "at the end" in seen.stdout
    assert seen.stderr.splitlines()[-len(cold.stderr.splitlines()) :] == cold.stderr.splitlines()
    assert ("ValueError: broken" in seen.stderr) == ("fails" in arguments)


def test_modules_and_code(warm, tmp_path):
    (tmp_path / "hello.py").write_text("import sys; print('hello', sys.argv[1:])")
    module = subprocess.run([warm, "-m", "hello", "you"], cwd=tmp_path, capture_output=True, text=True)
    assert module.stdout == "hello ['you']\n", module.stderr
    code = subprocess.run([warm, "-u", "-c", "import sys; sys.exit(len(sys.argv))", "a", "b"])
    assert code.returncode == 3


def test_signals_are_passed_on(warm, tmp_path):
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print(1, flush=True)"
    process = subprocess.Popen([warm, "-c", f"{script}; time.sleep(60)"], stdout=subprocess.PIPE)
    assert process.stdout.read(1) == b"1"
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 5
    killed = subprocess.run([warm, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert killed.returncode == 128 + 9


def test_a_killed_command_leaves_nothing_behind(warm, tmp_path):
    """Also not what it has started, by the same Python."""
    inner = f"import os, time; open({str(tmp_path / 'inner')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = f"import subprocess; subprocess.run([{warm!r}, '-c', {inner!r}])"
    process = subprocess.Popen([warm, "-c", outer], start_new_session=True)
    until = time.monotonic() + 120
    while not (tmp_path / "inner").exists() or not (tmp_path / "inner").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    number = int((tmp_path / "inner").read_text())
    with suppress(psutil.NoSuchProcess):  # which it may become at any moment
        while psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.05)
