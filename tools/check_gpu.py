"""Show what runs on a GPU, how right it is and how fast; `scripts/check_gpu.sh` starts this."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_checks import PYTHON
from gpu_checks.table import as_text
from megatron_v2pe.base.command import finished, run_tool
from megatron_v2pe.base.whole_files import write_text

PARTS = {
    "tests": "the tests that need a GPU",
    "layouts": "every parallel layout beside one process, several ranks on one card under NCCL",
    "steps": "training steps of full-size InternVL2-2B",
    "generation": "first token and decoding",
    "peer": "transformers' InternVL of the same shape on the same card",
    "kernels": "attention and fused operations, each kernel's time",
    "families": "every language model and both towers beside transformers' InternVL on the same card",
}
LETTERS = dict(zip("abcdefg", PARTS, strict=True))
SECONDS = {"tests": 150, "layouts": 220, "steps": 150, "generation": 80, "peer": 110, "kernels": 100, "families": 330}
"""After so long a part is ended. Parts a to d took 128, 177, 97 and 44 seconds on an H100, g more than 225."""
CPU_SECONDS = 600
EXAMPLE = """example:
  bash scripts/check_gpu.sh layouts kernels --json check.json
  bash scripts/check_gpu.sh b f --device cpu"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 1 where a number is wrong or a part did not end."""
    arguments = _parser().parse_args(argv)
    if arguments.part is not None:
        return _run_part(arguments.part, arguments.device, arguments.json)
    wrong: list[bool] = []
    status = finished(lambda: wrong.append(_run_all(arguments)))
    return status or int(any(wrong))


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="bash scripts/check_gpu.sh", description=__doc__, epilog=EXAMPLE, formatter_class=formatter
    )
    names = [*PARTS, *LETTERS]
    listed = "; ".join(f"{letter} {name}: {PARTS[name]}" for letter, name in LETTERS.items())
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*names, []], help=f"(default: all) {listed}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="for each part, in place of its own limit")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # one part in this process
    return parser


def _run_part(name: str, device: str, target: Path) -> int:
    """Run one part here and write what it found."""
    # CUBLAS and cuDNN may use TF32 for float32 products: not where float32 layouts are compared.
    import torch

    torch.backends.cudnn.allow_tf32 = False
    from gpu_checks.outcome import Outcome

    Outcome.target = target
    importlib.import_module(f"gpu_checks.{name}").run(device).keep()
    return 0


def _run_all(arguments: argparse.Namespace) -> bool:
    """Run parts one after the other, each in a process of its own; tell whether something is wrong."""
    from megatron_v2pe.device.device import Device

    device = Device.choose(arguments.device)
    asked: list[str] = arguments.parts
    names = list(dict.fromkeys(LETTERS.get(part, part) for part in asked)) or list(PARTS)
    report: dict[str, Any] = {
        "device": device.describe(),
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "versions": _versions(),
        "parts": {},
    }
    print(f"{report['device']}; {', '.join(f'{k} {v}' for k, v in report['versions'].items())}", flush=True)
    for name in names:
        limit = arguments.seconds or (SECONDS[name] if device.kind == "cuda" else CPU_SECONDS)
        report["parts"][name] = part = _in_own_process(name, device.kind, limit)
        print("\n".join(as_text(f"{_letter(name)} {name}: {PARTS[name]}", part)), flush=True)
        if arguments.json is not None:
            write_text(arguments.json, json.dumps(report, indent=1) + "\n", shared=True)
    wrong = [f"{name}: {sentence}" for name, part in report["parts"].items() for sentence in part["wrong"]]
    seconds = sum(part["seconds"] for part in report["parts"].values())
    print(f"\n{len(names)} parts, {seconds:.0f} s: " + ("all numbers hold" if not wrong else f"{len(wrong)} WRONG"))
    for sentence in wrong:
        print(f"  {sentence}")
    return bool(wrong)


def _in_own_process(name: str, device: str, limit: float) -> dict[str, Any]:
    """Run a part, and end it with all it has started where it takes too long."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="check_gpu_") as folder:
        target = Path(folder) / "part.json"
        command = [PYTHON, __file__, "--part", name, "--device", device, "--json", str(target)]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status = process.wait(limit)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                status = f"not done after {limit:.0f} s"
        part = json.loads(target.read_text()) if target.is_file() else {"rows": [], "remarks": [], "wrong": []}
        if status != 0 or not target.is_file():
            tail = log.read_text(errors="replace").strip().splitlines()[-25:]
            part["remarks"] += tail
            part["wrong"].append(f"did not end well: {status}; {tail[-1] if tail else ''}")
    return {**part, "seconds": round(time.monotonic() - began, 1)}


def _letter(name: str) -> str:
    return f"({next(letter for letter, part in LETTERS.items() if part == name)})"


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__, "CUDA": str(torch.version.cuda)}
    for package in ("megatron-core", "transformers", "triton", "flash-attn", "transformer-engine"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _commit() -> str:
    """Return the commit of the checkout, where it is one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    run_tool(main)
