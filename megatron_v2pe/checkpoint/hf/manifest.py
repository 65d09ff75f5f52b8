"""`manifest.json`: the SHA-256 of every HF tensor of a checkpoint, made by a conversion and compared by the next.

The sums are of the tensors' bytes as a safetensors file holds them, so they are those of the original model whatever
files, shards or layout a folder has. Checksums of files find a damaged file; a manifest says that a tensor is the very
one that was converted. Who can change a file can change the manifest too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from megatron_v2pe.checkpoint.hf.finite import Examined
from megatron_v2pe.checkpoint.hf.safetensors_io import DTYPES
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.text import read_json

MANIFEST = "manifest.json"
KIND = "SHA-256 of HF tensors"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST = 1 << 28
_MOST_NAMED = 4


@dataclass(frozen=True)
class TensorSum:
    """Type, shape and SHA-256 of a tensor."""

    dtype: str
    """As safetensors writes it: `BF16`."""
    shape: tuple[Annotated[int, Range(0)], ...]
    sha256: str

    @classmethod
    def of(cls, examined: Examined) -> TensorSum:
        """Return the sum of a tensor that was looked at."""
        return cls(_NAMES[examined.dtype], examined.shape, examined.sha256)


@dataclass(frozen=True)
class TensorManifest:
    """The sums of all tensors of a checkpoint, by HF name."""

    tensors: dict[str, TensorSum]
    layout: str = "original"
    """Whose names the tensors have: `original` or `native`."""
    kind: str = KIND
    format_version: int = 1

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, sorted by name, one tensor a line."""
        head = {"kind": self.kind, "format_version": self.format_version, "layout": self.layout}
        lines = [
            f"  {json.dumps(name)}: " + json.dumps({"dtype": one.dtype, "shape": one.shape, "sha256": one.sha256})
            for name, one in sorted(self.tensors.items())
        ]
        text = json.dumps(head)[:-1] + ', "tensors": {\n' + ",\n".join(lines) + "\n}}\n"
        with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    @classmethod
    def read(cls, folder: Path) -> TensorManifest | None:
        """Read the manifest of a folder; None where it has none.

        Raises:
            CheckpointError: a file of this name is damaged, or another program's.
        """
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return None
        content: Any = read_json(path, CheckpointError, _LARGEST)
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise CheckpointError(f"{printable(path)}: the name is taken by the converter; rename this file")
        manifest = typed(cls, content, printable(path), CheckpointError)
        if manifest.format_version != 1:
            raise CheckpointError(
                f"{printable(path)}: of format {manifest.format_version}, this program knows format 1"
            )
        return manifest

    def compare(self, found: TensorSum, name: str, source: str) -> None:
        """Compare a tensor with its sum.

        Raises:
            CheckpointError: it is another tensor than the manifest's, or the manifest has none of this name.
        """
        known = self.tensors.get(name)
        if known is None:
            raise CheckpointError(f"{source}: {MANIFEST} does not list {name}")
        if known == found:
            return
        if (known.dtype, known.shape) != (found.dtype, found.shape):
            raise CheckpointError(
                f"{source}: {name} is {found.dtype} {list(found.shape)}, {MANIFEST} says {known.dtype} "
                f"{list(known.shape)}"
            )
        raise CheckpointError(
            f"{source}: {name} has the SHA-256 {found.sha256}, {MANIFEST} says {known.sha256}: it was changed since. "
            f"Copy the folder again, or, if it was changed on purpose, remove {MANIFEST}"
        )

    def check_names(self, found: Iterable[str], source: str) -> None:
        """Check that a folder holds exactly the tensors of the manifest.

        Raises:
            CheckpointError: tensors are missing or not listed; they are named.
        """
        there = set(found)
        missing, extra = sorted(self.tensors.keys() - there), sorted(there - self.tensors.keys())
        problems = [
            f"{len(names)} tensors {what}: {', '.join(names[:_MOST_NAMED])}{', ...' * (len(names) > _MOST_NAMED)}"
            for what, names in (("of the manifest are missing", missing), ("are not in the manifest", extra))
            if names
        ]
        if problems:
            raise CheckpointError(f"{source}: {'; '.join(problems)}")


def manifest_of(examined: Mapping[str, TensorSum], layout: str) -> TensorManifest:
    """Return the manifest of tensors that were looked at."""
    return TensorManifest(dict(examined), layout)
