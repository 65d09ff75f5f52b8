"""Training runs that stand still after a step of choice, so that what a test does next finds them there.

A test that looks at a run and then kills or stops it races with the run, which may have ended before the test's own
process has run again. This folder is a plug-in (`writer.py` adds the log writer `held`): after the row of that step is
written, rank 0 makes the file `held` in a folder of the test's, and waits until a signal asks the run to stop or until
the test makes the file `go` there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "MEGATRON_V2PE_HELD_RUN"
"""Environment variable of the run: the step, a blank, the test's folder."""

WRITER = "held"


@contextmanager
def held(step: int, folder: Path) -> Iterator[str]:
    """Let runs that are started meanwhile stand still after a step; yield the setting that their command line needs.

    Args:
        step: after which the run waits.
        folder: for the files `held` and `go`; made if it is not there.
    """
    from megatron_v2pe.base.plugins import VARIABLE as PLUGINS

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("held", "go"):
        (folder / name).unlink(missing_ok=True)
    before = {name: os.environ.get(name) for name in (PLUGINS, VARIABLE)}
    os.environ.update({PLUGINS: str(Path(__file__).parent), VARIABLE: f"{step} {folder}"})
    try:
        yield f"logging.writers={WRITER}"
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
