"""What an indexed data set consists of: one folder, the files in it, the records of each, and the manifest.

| file | content |
|---|---|
| `manifest.json` | version, settings, fingerprints, data sets, counts, size of every other file, its own checksum |
| `checksums.bin` | checksums of the blocks of every other file but `images.bin`, see `checksums` |
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
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.data.image_operations import AS_PUBLISHED, Opening
from megatron_v2pe.data.indexed.checksums import BLOCK, CHECKSUMS, REMEDY, CheckedFile, read_checksums
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.files import check_name, check_regular
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.seal import CHECK, seal, unseal
from megatron_v2pe.foreign.text import read_json_object

_log = get_logger(__name__)
FORMAT, VERSION = "megatron-v2pe indexed data set", 2
WITHOUT_CHECKSUMS = 1
"""Version of the sets written before there were checksums; they are still read."""
MANIFEST = "manifest.json"
_Count = Annotated[int, Range(0)]
_Positive = Annotated[float, Range(1e-300)]
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
    lines: _Count
    """Lines that are not empty."""
    first: _Count
    """Number of its first sample."""
    samples: _Count
    """Lines that could be used."""
    repeat_time: _Positive
    weight: _Positive | None = None
    opening: Opening = AS_PUBLISHED
    """How its image files become RGB; written only where it is not as published."""
    image_operations: tuple[str, ...] = ()
    """Its further image operations, see `data.image_operations.read_operations`; written only where there are some."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.samples


@dataclass(frozen=True)
class Manifest:
    """Everything about an indexed data set but its records."""

    settings: dict[str, str | int | float | bool | None]
    """Settings tokens and tiles depend on; a run with others is refused."""
    limits: dict[str, _Count]
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
    counts: dict[str, _Count]
    sizes: dict[str, _Count]
    """Bytes of every other file."""
    version: int = VERSION
    block: int = BLOCK
    """Bytes a checksum stands for."""
    checksums_xxh3: str = ""
    """Checksum of `checksums.bin`, 128 bits in hexadecimal digits."""

    def write(self, folder: Path) -> None:
        """Write the manifest as JSON; it is there whole or not at all."""
        content = asdict(self)
        for entry, dataset in zip(content["datasets"], self.datasets, strict=True):
            if dataset.opening == AS_PUBLISHED:
                del entry["opening"]
            if not dataset.image_operations:
                del entry["image_operations"]
        content = seal({"format": FORMAT, **content})
        write_text(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=True)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder and check every file's size against it.

        Raises:
            DataError: no indexed data set, of another version, damaged, or a file of another size than written.
        """
        path, shown = folder / MANIFEST, printable(folder / MANIFEST)
        if not path.exists():
            raise DataError(
                f"{printable(folder)}: no {MANIFEST}: not a finished indexed data set; tools/preprocess_data.py makes "
                "one"
            )
        content = read_json_object(path, DataError, unique=True)
        if content.pop("format", None) != FORMAT:
            raise DataError(f"{shown}: not the manifest of an indexed data set")
        version = content.get("version")
        if version == WITHOUT_CHECKSUMS and not {"block", "checksums_xxh3", CHECK} & set(content):
            content |= {"block": 0, "checksums_xxh3": ""}
        elif version != VERSION:
            raise DataError(
                f"{shown}: format version {printable(version)[:20]}, this program reads version {VERSION}; build it "
                "again"
            )
        elif CHECK not in content:
            raise DataError(f"{shown}: damaged: field {CHECK!r} is missing; {REMEDY}")
        else:
            content["format"] = FORMAT
        try:
            content = unseal(content, shown, DataError)
            content.pop("format", None)
            manifest = typed(cls, content, shown, DataError)
            manifest._check(shown)
        except DataError as error:
            raise DataError(f"{error}; the data set is damaged; {REMEDY}") from error
        for name, size in manifest.sizes.items():
            file = folder / name
            found = check_regular(file, DataError) if file.exists() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes"
                raise DataError(f"{printable(file)}: {state}, {size} were written: the data set is damaged; {REMEDY}")
        return manifest

    def _check(self, source: str) -> None:
        """Check what no type can hold: names that stay in the folder, files that have to be there, counts that agree.

        Raises:
            DataError: names the field.
        """
        for name in self.sizes:
            check_name(name, f"{source}: sizes", DataError)
        needed = [f"{TOKENS}.bin", f"{TOKENS}.idx", SAMPLES, RANGES, MEDIA, FILES, PATHS]
        needed += [f"{IMAGES}.bin", f"{IMAGES}.idx"] if self.embedded else []
        needed += [CHECKSUMS] if self.version == VERSION else []
        for where, names, content in (
            ("sizes", needed, self.sizes),
            ("counts", ["samples", "longest", "most_tiles"], self.counts),
            ("settings", ["image_token"], self.settings),
        ):
            if missing := [name for name in names if name not in content]:
                raise DataError(f"{source}: {where}: {missing[0]!r} is missing")
        if self.version == VERSION and self.block != BLOCK:
            raise DataError(f"{source}: block: found {self.block}, expected {BLOCK}")
        first = 0
        for entry in self.datasets:
            if entry.first != first or entry.samples > entry.lines:
                raise DataError(
                    f"{source}: data set {printable(entry.name)!r}: {entry.samples} samples of {entry.lines} lines "
                    f"from number {entry.first} on, {first} samples stand before"
                )
            first += entry.samples
        if first != self.counts["samples"]:
            raise DataError(f"{source}: counts: found {self.counts['samples']} samples, its data sets have {first}")

    @property
    def summed(self) -> dict[str, int]:
        """Bytes of every file that has checksums of its blocks."""
        return {name: size for name, size in self.sizes.items() if has_checksums(name)}


def has_checksums(name: str) -> bool:
    """Tell whether the blocks of a file have checksums."""
    return name not in (CHECKSUMS, f"{IMAGES}.bin")


class SetFiles:
    """The files of a data set, opened one by one, each with its checksums where there are any."""

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        """Read the checksums.

        Args:
            folder: of the set.
            manifest: of the set; None while it is being built: nothing is checked then.

        Raises:
            DataError: `checksums.bin` is damaged.
        """
        self.folder = folder
        self._sums: dict[str, np.ndarray] = {}
        if manifest is not None and manifest.version == WITHOUT_CHECKSUMS:
            _warn(str(folder))
        elif manifest is not None:
            self._sums = read_checksums(folder, manifest.summed, manifest.checksums_xxh3)

    def open(self, name: str) -> CheckedFile:
        """Map a file."""
        return CheckedFile(self.folder / name, self._sums.get(name))


@cache
def _warn(folder: str) -> None:
    _log.warning(
        "%s was built before data sets had checksums: damage inside its files cannot be noticed; build it again to "
        "change that",
        printable(folder),
    )
