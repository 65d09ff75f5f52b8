"""How fast a checkpoint is converted and how much memory that takes, beside copying the same bytes with `cp`."""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import CheckpointError, ConfigError

DESCRIPTION = "conversion of a full-size model both ways: rate beside cp, peak memory above the interpreter, identity"
_TOOL = Path(__file__).parents[1] / "convert_checkpoint.py"
_BLOCK = 1 << 17
_FOLDERS = 3
"""Copies of the weights on the disk at once."""


def run(argv: list[str]) -> dict[str, Any]:
    """Make a checkpoint, convert it there and back, compare; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py conversion", description=DESCRIPTION)
    parser.add_argument("--work", type=Path, default=Path("work_dirs"), help="folder with room; emptied after")
    parser.add_argument("--preset", default="InternVL2-2B", help="model, see tools/presets.py (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="layers of the language model; default: all")
    arguments = parser.parse_args(argv)
    if arguments.layers is not None and arguments.layers < 1:
        raise ConfigError(f"--layers is {arguments.layers}, expected 1 or more")
    arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="conversion_", dir=arguments.work) as folder:
        return conversion_benchmark(Path(folder), arguments.preset, arguments.layers)


def conversion_benchmark(work_folder: Path, preset: str = "InternVL2-2B", layers: int | None = None) -> dict[str, Any]:
    """Measure in `work_folder`; every step is a process of its own.

    Returns:
        Parameters, bytes, and per step, each with its source in the page cache: seconds, MB/s, seconds of processor
        time, and the peak of memory above that of a Python that has imported
        the converter and does nothing, in GiB: of all memory, and of memory that is no page of a file.

    Raises:
        ConfigError: an unknown preset, or a disk that is too small.
        CheckpointError: a step failed, or what came back differs.
    """
    from megatron_v2pe.models.presets import preset_config
    from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder

    config = preset_config(preset)
    if layers is not None:
        config["llm_config"]["num_hidden_layers"] = layers
    source, mcore, back, copy = (work_folder / name for name in ("hf", "mcore", "back", "copy"))
    parameters = write_hf_folder(source, config)
    written = sum(path.stat().st_size for path in source.iterdir())
    if (free := shutil.disk_usage(work_folder).free) < (_FOLDERS - 1) * written:
        raise ConfigError(f"--work: {free / 1e9:.1f} GB free, {(_FOLDERS - 1) * written / 1e9:.1f} more are needed")
    size = sum(path.stat().st_size for path in source.iterdir())
    python, remove = [sys.executable, str(_TOOL)], f'rm -r "{copy}"'
    copied = f'cp -r "{source}" "{copy}"'
    steps = [
        ("cp", ["sh", "-c", copied]),
        ("hf-to-mcore", [*python, "hf-to-mcore", str(source), str(mcore)]),
        ("mcore-to-hf", [*python, "mcore-to-hf", str(mcore), str(back)]),
        ("cp and sync", ["sh", "-c", f'{copied} && sync "{copy}"/*']),
    ]
    _, *interpreter = _measure([sys.executable, "-c", "import megatron_v2pe.checkpoint.hf.api"])
    rows = []
    for name, command in steps:
        subprocess.run(["sync"], check=True)  # what the step before left to write is not this step's work
        _into_cache(mcore if name == "mcore-to-hf" else source)
        before = _processor_seconds()
        seconds, resident, anonymous = _measure(command)
        row = {"step": name, "s": seconds, "MB/s": size / 1e6 / seconds, "processor s": _processor_seconds() - before}
        if name in ("hf-to-mcore", "mcore-to-hf"):
            row |= {
                "GiB above": (resident - interpreter[0]) / 2**30,
                "anonymous GiB above": (anonymous - interpreter[1]) / 2**30,
            }
        else:
            subprocess.run(["sh", "-c", remove], check=True)
        if name == "mcore-to-hf":
            shutil.rmtree(mcore)  # so that no more than three copies of the weights are there at once
        rows.append(row)
    return {"parameters": parameters, "bytes": size, "identical": _identical(source, back), "steps": rows}


def _into_cache(folder: Path) -> None:
    """Have the system hold a folder's files in its page cache, as they are after a download: `cp` gains by it too."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb", buffering=0) as stream:
            while stream.read(_BLOCK):
                continue


def _processor_seconds() -> float:
    """Return the processor time of all processes that were started and have ended, the system's share counted."""
    times = os.times()
    return times.children_user + times.children_system


def _measure(command: list[str]) -> tuple[float, int, int]:
    """Run a command; return seconds, and the most memory and the most anonymous memory seen, in bytes.

    Memory counts pages of mapped files. The first is the system's own record, the second is polled every 20 ms.
    """
    start, resident, anonymous = time.monotonic(), 0, 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        resident = max(resident, _memory(process.pid, "VmHWM"))
        anonymous = max(anonymous, _memory(process.pid, "RssAnon"))
        time.sleep(0.02)
    if process.returncode:
        raise CheckpointError(f"{' '.join(command)}: exit status {process.returncode}")
    return time.monotonic() - start, resident, anonymous


def _memory(pid: int, field: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended, or this is not Linux
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field)), 0)


def _identical(ours: Path, theirs: Path) -> bool:
    names = sorted(path.name for path in ours.iterdir())
    if names != sorted(path.name for path in theirs.iterdir()):
        raise CheckpointError(f"{theirs}: holds other files than {ours}")
    _, mismatch, errors = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    if mismatch or errors:
        raise CheckpointError(f"{theirs}: differs from {ours}: {', '.join([*mismatch, *errors])}")
    return True
