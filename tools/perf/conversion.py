"""How fast a checkpoint is converted and how much memory that takes, beside copying the same bytes with `cp`."""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import CheckpointError, ConfigError

DESCRIPTION = "conversion of a full-size InternVL2-2B both ways: rate beside cp, peak memory, identity"
_TOOL = Path(__file__).parents[1] / "convert_checkpoint.py"
_NEEDED_GB = 19


def run(argv: list[str]) -> dict[str, Any]:
    """Make a checkpoint, convert it there and back, compare; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py conversion", description=DESCRIPTION)
    parser.add_argument("--work", type=Path, default=Path("work_dirs"), help="folder with 19 GB free; emptied after")
    parser.add_argument("--layers", type=int, default=24, help="layers of the language model, 24 in InternVL2-2B")
    arguments = parser.parse_args(argv)
    if arguments.layers < 1:
        raise ConfigError(f"--layers is {arguments.layers}, expected 1 or more")
    arguments.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(arguments.work).free / 1e9
    if arguments.layers == 24 and free < _NEEDED_GB:
        raise ConfigError(f"--work {arguments.work}: {free:.1f} GB free, {_NEEDED_GB} needed")
    with tempfile.TemporaryDirectory(prefix="conversion_", dir=arguments.work) as folder:
        return conversion_benchmark(Path(folder), arguments.layers)


def conversion_benchmark(work_folder: Path, layers: int = 24) -> dict[str, Any]:
    """Measure in `work_folder`; every step is a process of its own.

    Returns:
        Parameters, bytes, and per step seconds, MB/s and the peak of anonymous memory in GiB.

    Raises:
        CheckpointError: a step failed, or what came back differs.
    """
    from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config, write_hf_folder

    config = internvl2_2b_config()
    config["llm_config"]["num_hidden_layers"] = layers
    source, mcore, back, copy = (work_folder / name for name in ("hf", "mcore", "back", "copy"))
    parameters = write_hf_folder(source, config)
    size = sum(path.stat().st_size for path in source.iterdir())
    python = [sys.executable, str(_TOOL)]
    steps = [
        ("cp", ["cp", "-r", str(source), str(copy)]),
        ("hf-to-mcore", [*python, "hf-to-mcore", str(source), str(mcore)]),
        ("mcore-to-hf", [*python, "mcore-to-hf", str(mcore), str(back)]),
        ("cp and sync", ["sh", "-c", f'rm -r "{copy}"; cp -r "{source}" "{copy}" && sync "{copy}"/*']),
    ]
    rows = []
    for name, command in steps:
        subprocess.run(["sync"], check=True)  # what the step before left to write is not this step's work
        seconds, anonymous = _measure(command)
        rows.append({"step": name, "s": seconds, "MB/s": size / 1e6 / seconds, "anonymous GiB": anonymous / 2**30})
    return {"parameters": parameters, "bytes": size, "identical": _identical(source, back), "steps": rows}


def _measure(command: list[str]) -> tuple[float, int]:
    """Run a command; return seconds and the largest anonymous memory seen, in bytes, polled every 20 ms."""
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise CheckpointError(f"{' '.join(command)}: exit status {process.returncode}")
    return time.monotonic() - start, peak


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended, or this is not Linux
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def _identical(ours: Path, theirs: Path) -> bool:
    names = sorted(path.name for path in ours.iterdir())
    if names != sorted(path.name for path in theirs.iterdir()):
        raise CheckpointError(f"{theirs}: holds other files than {ours}")
    _, mismatch, errors = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    if mismatch or errors:
        raise CheckpointError(f"{theirs}: differs from {ours}: {', '.join([*mismatch, *errors])}")
    return True
