"""What a run's answers came from: checkpoint, settings, version of the code, device.

A run goes on under the same checkpoint and settings only. Code and device may change, and all of them are noted:
answers depend on a device by roundings alone, and an evaluation that was begun on one machine may end on another.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import typed
from megatron_v2pe.foreign.seal import seal, unseal
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.version import __version__

RUN = "run.json"
_PIECE = 1 << 22
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Origin:
    """What a run's answers came from: the content of `run.json`, which has a checksum beside it."""

    settings: dict[str, str | int | float | None]
    """What they depend on, by name."""
    code: str = "-"
    """Version that began to ask."""
    later_code: tuple[str, ...] = ()
    """Versions that went on."""
    device: str = "-"
    """Where the first answers were made, see `Device.describe`; files of older versions do not say."""
    later_devices: tuple[str, ...] = ()
    """Where others were."""


def read_origin(path: Path, error: Kind) -> Origin:
    """Return the content of a `run.json`.

    Raises:
        V2PEError: of class `error`: it is damaged, or not what an evaluation writes; says what to do.
    """
    try:
        content = unseal(read_json_object(path, error, _LARGEST, unique=True), printable(path), error)
        return typed(Origin, content, printable(path), error)
    except error as problem:
        raise error(
            f"{problem}. It is not an evaluation's, or has been damaged, and nothing else says which checkpoint and "
            "settings the answers beside it came from: restore it, or choose another folder"
        ) from problem


def checkpoint_digest(folder: Path) -> str:
    """Return a fingerprint of a checkpoint: names, sizes and contents of all its files, read once (1 to 2 s a GB)."""
    digest = hashlib.blake2b(digest_size=32)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        digest.update(os.fsencode(path.relative_to(folder)) + f" {path.stat().st_size}\n".encode())
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


def settle(folder: Path, settings: dict[str, Any], device: str = "-", assumed: Mapping[str, Any] | None = None) -> None:
    """Note what a run's answers depend on, or check it against what the folder's answers came from.

    Another version of the code may go on, and another device; they are noted as `later_code` and `later_devices`.

    Args:
        folder: of the run.
        settings: what answers depend on, by name.
        device: where they are made, in words.
        assumed: what answers of older versions were made with, for settings those did not note.

    Raises:
        ConfigError: the folder holds answers of another checkpoint or other settings; names what differs.
    """
    path = folder / RUN
    ours = json.loads(json.dumps(settings))
    code = code_version()
    if os.path.lexists(path):
        there = read_origin(path, ConfigError)
        theirs = {**(assumed or {}), **there.settings}
        differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if differing:
            differences = "; ".join(f"{name} {theirs.get(name)} there, {ours.get(name)} now" for name in differing)
            raise ConfigError(
                f"{printable(folder)} holds answers of another run: {printable(differences)}. Choose another --out"
            )
        later_code = _with(there.later_code, there.code, code)
        later_devices = _with(there.later_devices, there.device, device)
        if (later_code, later_devices) == (there.later_code, there.later_devices):
            return
        origin = replace(there, later_code=later_code, later_devices=later_devices)
    else:
        if answers := next(folder.glob("*/answers-*.jsonl"), None):
            raise ConfigError(
                f"{printable(path)} is missing, and nothing else says which checkpoint and settings "
                f"{printable(answers)} came from: restore it, or choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        origin = Origin(ours, code, device=device)
    write_text(path, json.dumps(seal(asdict(origin)), indent=1, ensure_ascii=False) + "\n", shared=True)


def _with(later: tuple[str, ...], first: str, now: str) -> tuple[str, ...]:
    """What came later, with what there is now unless it was there before."""
    return later if now in (first, *later) else (*later, now)
