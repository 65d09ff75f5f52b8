"""What a run's answers came from: checkpoint, settings, version of the code; a run goes on under the same ones only."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.version import __version__

RUN = "run.json"
_PIECE = 1 << 22


def checkpoint_digest(folder: Path) -> str:
    """Return a fingerprint of a checkpoint: names, sizes and contents of all its files, read once (1 to 2 s a GB)."""
    digest = hashlib.blake2b(digest_size=32)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        with open(path, "rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def code_version() -> str:
    """Return the package's version, and the commit of a checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({found.stdout.strip()})"


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """Note what a run's answers depend on, or check it against what the folder's answers came from.

    Another version of the code may go on; it is noted as `later_code`.

    Raises:
        ConfigError: the folder holds answers of another checkpoint or other settings; names what differs.
    """
    path = folder / RUN
    ours = json.loads(json.dumps(settings))
    code = code_version()
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            theirs = dict(there["settings"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is not an evaluation's; the folder is another's. Choose another --out") from None
        differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if differing:
            told = "; ".join(f"{name} {theirs.get(name)} there, {ours.get(name)} now" for name in differing)
            raise ConfigError(f"{folder} holds answers of another run: {told}. Choose another --out")
        if code in (there.get("code"), *there.get("later_code", ())):
            return
        content = {**there, "later_code": [*there.get("later_code", ()), code]}
    else:
        folder.mkdir(parents=True, exist_ok=True)
        content = {"settings": ours, "code": code}
    temporary = path.with_suffix(f".new-{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
