"""What an indexed data set consists of: one folder, the files in it, the records of each, and the manifest.

| file | content |
|---|---|
| `manifest.json` | version, settings and fingerprints of the build, data sets, counts, size of every other file |
| `tokens.bin`, `tokens.idx` | a Megatron-Core indexed data set (int32): one sequence a sample, an image is one token |
| `samples.bin` | `SAMPLE` records: lengths, line, where the sample's other records begin |
| `ranges.bin` | int32 [n, 2]: ranges of a sample's ids that are learned |
| `media.bin` | `MEDIUM` records: an image or a video as a sample uses it |
| `files.bin`, `paths.bin` | `FILE` records: every image or video file once; their paths one after the other (UTF-8) |
| `images.bin`, `images.idx` | if embedded: a Megatron-Core indexed data set (uint8), one sequence per distinct image |
| `report.json`, `report.txt`, `lengths.png` | what was built and what had to be left out |

All numbers are little-endian. Records of a sample or file end where those of the next begin.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.errors import DataError

FORMAT, VERSION = "megatron-v2pe indexed data set", 1
MANIFEST = "manifest.json"
TOKENS, IMAGES = "tokens", "images"
SAMPLES, RANGES, MEDIA, FILES, PATHS = "samples.bin", "ranges.bin", "media.bin", "files.bin", "paths.bin"
TOKEN_TYPE = np.dtype("<i4")

SAMPLE = np.dtype(
    [
        ("tokens", "<i4"),  # length with every image at its number of tiles
        ("tiles", "<i4"),
        ("supervised", "<i4"),  # tokens something is learned from
        ("ids", "<i4"),  # length in tokens.bin, an image being one
        ("line", "<i4"),  # of the annotation file, from 1
        ("first_range", "<i8"),
        ("first_medium", "<i8"),
    ]
)
MEDIUM = np.dtype(
    [
        ("file", "<i8"),
        ("start", "<i8"),  # index of its first image token in the sample, tiles counted
        ("columns", "<i2"),  # of the grid; 0: the whole image as one tile
        ("rows", "<i2"),
        ("thumbnail", "?"),
        ("pad_to_square", "?"),
        ("augment", "?"),
        ("video", "?"),
        ("frames", "<i4"),  # of a video: how many are drawn, from `first` up to `last`
        ("first", "<i4"),
        ("last", "<i4"),
    ]
)
FILE = np.dtype(
    [
        ("path", "<i8"),  # where it begins in paths.bin
        ("size", "<i8"),  # bytes; -1: could not be read when the set was built
        ("width", "<i4"),  # pixels; 0 for videos
        ("height", "<i4"),
        ("copy", "<i8"),  # sequence in images.bin; -1: referenced
        ("video", "?"),  # used as a video, or a folder of frames; the same path may be an image elsewhere
        ("sha256", "u1", (32,)),
    ]
)


@dataclass(frozen=True)
class IndexedSet:
    """One entry of the data list, as built: its samples lie together."""

    name: str
    annotation: str
    annotation_sha256: str
    lines: int
    """Lines that are not empty."""
    first: int
    """Number of its first sample."""
    samples: int
    """Lines that could be used."""
    repeat_time: float
    weight: float | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.samples


@dataclass(frozen=True)
class Manifest:
    """Everything about an indexed data set but its records."""

    settings: dict[str, Any]
    """Settings tokens and tiles depend on; a run with others is refused."""
    limits: dict[str, Any]
    """Lengths above which samples were left out."""
    tokenizer_sha256: str
    template_sha256: str
    embedded: bool
    """Whether images are in the folder; otherwise they are read from their paths."""
    image_check: str
    v2pe: dict[str, Any]
    """Position version and strides of the build's configuration, for runs that want those."""
    plan_sha256: str
    """Fingerprint of all settings and annotations, so that a build asked for again is known to be done."""
    lengths_sha256: str
    """Fingerprint of what packs depend on: tokens and tiles of all samples, and their data sets."""
    datasets: tuple[IndexedSet, ...]
    counts: dict[str, int]
    sizes: dict[str, int]
    """Bytes of every other file."""

    def write(self, folder: Path) -> None:
        """Write the manifest as JSON; it is there whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        temporary = folder / f"{MANIFEST}.new"
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.rename(temporary, folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder and check every file's size against it.

        Raises:
            DataError: no indexed data set, of another version, or a file of another size than written.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{folder}: no {MANIFEST}: not a finished indexed data set; tools/preprocess_data.py makes one"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise DataError(f"{path}: not the manifest of an indexed data set")
        if (version := content.pop("version", None)) != VERSION:
            raise DataError(f"{path}: format version {version}, this program reads version {VERSION}; build it again")
        try:
            content["datasets"] = tuple(IndexedSet(**entry) for entry in content["datasets"])
            manifest = cls(**content)
        except (TypeError, KeyError) as error:
            raise DataError(f"{path}: damaged: {error}") from error
        for name, size in manifest.sizes.items():
            file = folder / name
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes"
                raise DataError(
                    f"{file}: {state}, {size} were written: the data set is damaged; copy or build it again"
                )
        return manifest
