"""Numbered steps of the run scripts: counted, timed, and the one that failed is named."""

from __future__ import annotations

import re
import subprocess

import pytest

from helpers.tool_runs import ROOT

HEAD = f"""set -eu
root={ROOT}
steps_of=demo
total=2
out=there
after=""
. {ROOT}/scripts/steps.sh
step one of two
finished
"""


def shell(script):
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True)


def test_steps_are_counted_and_timed():
    done = shell(HEAD + 'step two\nfinished\nprintf "%s s in all\\n" "$(in_all)"\n')
    assert done.returncode == 0 and done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[0] == "[1/2] one of two" and lines[2] == "[2/2] two" and re.match(r" {5,6}\d{1,2} s \(", lines[1])
    assert re.fullmatch(r"\d{1,2} s in all", lines[-1])


@pytest.mark.parametrize(("after", "end"), [("", "in there\n"), ("go on", "in there; go on\n")])
def test_the_step_that_failed_is_named(after, end):
    failed = shell(HEAD.replace('after=""', f'after="{after}"') + "step two\nsh -c 'exit 7'\nfinished\n")
    assert failed.returncode == 7
    assert failed.stderr == f"demo: step 2 of 2 failed (status 7); what it wrote is {end}"
