"""The annotation file (JSONL) of a data set, its lines read one by one when they are wanted.

The format is that of the V2PE data: see `docs/data.md`. Opening a file reads it once, for the offsets of its lines; a
sample's line is parsed when it is drawn. Every field has its type or the line is refused: a number is not taken for
text, and what is no path is not taken for "no image".
"""

from __future__ import annotations

import hashlib
import os
from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xxhash

from megatron_v2pe.data.image_operations import Opening
from megatron_v2pe.data.turns import TURN_FIELDS, turns_of
from megatron_v2pe.data.types import Sample, SampleId
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.media_fields import Media, media_of
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import LARGEST_LINE, kind_of, marked, parse_json

FIELDS = (*TURN_FIELDS, "clip")
"""Fields of a line that are read besides those that name images and videos."""
_LONGEST_VIDEO = 1e9
"""Seconds of a video, at most."""
_READ_BYTES = 1 << 16
_OTHER_FORMS = (
    "question",
    "answer",
    "query",
    "response",
    "prompt",
    "instruction",
    "input",
    "output",
    "text",
    "texts",
    "history",
    "body",
    "dialog",
    "dialogue",
    "turns",
)
_BLANK = np.zeros(256, dtype=bool)
_BLANK[list(b" \t\n\r\x0b\x0c")] = True


@dataclass(frozen=True)
class Dataset:
    """One data set: an entry of the data list, and the samples of its annotation file."""

    name: str
    annotation: str
    root: str = ""
    """This is put before image paths."""
    root2: str | None = None
    """This is put before the paths of samples with several images instead."""
    http_root: str | None = None
    """Folder of images from the web; each file is named by the SHA-256 of its address."""
    data_augment: bool = False
    """Whether the JPEG augmentation is applied."""
    repeat_time: float = 1.0
    """How often each line is seen per epoch; a fraction takes a random part of the lines."""
    weight: float | None = None
    """Its share of an epoch relative to the other data sets, in place of its size; all data sets have one, or none."""
    max_dynamic_patch: int | None = None
    """Overrides the setting of the run."""
    dynamic_image_size: bool | None = None
    """Overrides the setting of the run."""
    transparency: Literal["drop", "white", "black"] = "drop"
    """What is seen where a picture is transparent: see `Opening`."""
    exif_rotation: bool = False
    """Whether pictures are turned as their camera noted: see `Opening`."""
    image_operations: tuple[str, ...] = ()
    """Further image operations, applied in this order, as `data.image_operations.read_operations` returns them."""

    @property
    def opening(self) -> Opening:
        """Return how its image files become RGB."""
        return Opening(self.transparency, self.exif_rotation)

    @property
    def _offsets(self) -> np.ndarray:
        """Return the start of each non-empty line, and its number from 1: int64 [lines, 2]."""
        return self._scanned[0]

    @property
    def line_numbers(self) -> np.ndarray:
        """Return the number of each sample's line in the annotation file, from 1: int64 [samples]."""
        return self._offsets[:, 1]

    def part(self, chosen: np.ndarray) -> Dataset:
        """Return a data set of some of the samples, in their order; `chosen` says which, bool [samples]."""
        part = replace(self)
        part.__dict__["_scanned"] = (self._offsets[chosen], self.checksum)
        return part

    @property
    def checksum(self) -> str:
        """Return the XXH3-128 of every byte of the annotation file, as it was when it was opened."""
        return self._scanned[1]

    @cached_property
    def _scanned(self) -> tuple[np.ndarray, str]:
        """Read the annotation file once: where its lines are, and its checksum."""
        check_regular(self.annotation, DataError)
        rows, digest = array("q"), xxhash.xxh3_128()  # 16 bytes a line; tuples in a list took 150
        # About the line that is being read: where it begins, its number, whether it holds more than blanks.
        start, number, filled, position = 0, 1, False, 0
        with open(self.annotation, "rb") as stream:
            if what := marked(stream.read(4)):
                raise DataError(f"{printable(self.annotation)}: {what}")
            stream.seek(0)
            while content := stream.read(_READ_BYTES):  # lines may be longer than any memory
                digest.update(content)
                part = np.frombuffer(content, dtype="u1")
                ends = np.flatnonzero(part == 10)
                rest = 0
                if len(ends):
                    starts = np.concatenate([[0], ends[:-1] + 1])
                    some = ~_BLANK[part[starts]]
                    for line in np.flatnonzero(~some).tolist():
                        some[line] = bool(content[starts[line] : ends[line]].strip())
                    some[0] |= filled
                    rest, filled = int(ends[-1]) + 1, False
                    starts += position
                    starts[0] = start
                    found = np.flatnonzero(some)
                    rows.frombytes(np.stack([starts[found], found + number], axis=1).tobytes())
                    start, number = position + rest, number + len(ends)
                filled = filled or bool(content[rest:].strip())
                position += len(content)
        if filled:
            rows.extend((start, number))
        found = np.asarray(rows).reshape(-1, 2)
        return found[1:] if len(found) and self._is_mark(found[0]) else found, digest.hexdigest()

    def _is_mark(self, row: np.ndarray) -> bool:
        """Return whether a line holds a byte order mark and nothing else."""
        with open(self.annotation, "rb") as stream:
            stream.seek(int(row[0]))
            line = stream.readline(_READ_BYTES)
        return len(line) < _READ_BYTES and line.startswith(BOM_UTF8) and not line[len(BOM_UTF8) :].strip()

    def __len__(self) -> int:
        """Return the number of samples: lines that are not empty."""
        return len(self._offsets)

    def id_of(self, index: int) -> SampleId:
        """Return where sample `index` comes from."""
        return SampleId(self.name, int(self._offsets[index, 1]), self.annotation)

    def read(self, index: int) -> Sample:
        """Parse one sample.

        Raises:
            DataError: the line is not JSON, or not a conversation; names file and line.
        """
        with open(self.annotation, "rb") as stream:
            stream.seek(int(self._offsets[index, 0]))
            line = stream.readline(LARGEST_LINE + 1)
        sample = self.parse(line, int(self._offsets[index, 1]))
        if sample.unknown:
            self.unread.update(sample.unknown)
        return sample

    @cached_property
    def unread(self) -> Counter[str]:
        """Count, over the lines read so far, the fields that no code reads and that are not usual either."""
        return Counter()

    def block(self, first: int, count: int) -> LineBlock:
        """Return where `count` samples from `first` on stand in the annotation file."""
        return LineBlock(self._offsets[first : first + count])

    def blocks(self, lines: int, size: int) -> Iterator[LineBlock]:
        """Yield blocks of samples: at most `lines` of them, and at most about `size` bytes, at a time."""
        starts, first = self._offsets[:, 0], 0
        while first < len(starts):
            last = min(first + lines, max(int(np.searchsorted(starts, starts[first] + size)), first + 1))
            yield LineBlock(self._offsets[first:last])
            first = last

    def parse(self, line: bytes, number: int) -> Sample:
        """Parse a line of the annotation file, its number counted from 1.

        Raises:
            DataError: see `read`.
        """
        content = _json(line)
        media = media_of(content, FIELDS, DataError)
        images, video = self._files(media)
        turns = turns_of(content, DataError)
        if turns is None:
            others = ", ".join(repr(name) for name in _OTHER_FORMS if name in content)
            raise DataError(
                "field 'conversations' is missing or empty" + (f"; {others} are not read, turns are" if others else "")
            )
        if media.video is None and b"<video>" in line:
            place = next((number for number, turn in enumerate(turns, 1) if _asks_of_video(turn)), None)
            if place is not None:
                message = f"turn {place} begins with <video>, but the line names no video; give its path as 'video'"
                raise DataError(message)
        return Sample(
            id=SampleId(self.name, number, self.annotation),
            conversations=turns,
            images=images,
            multi_image=media.listed,
            video=video,
            clip=_clip(content.get("clip")),
            unknown=media.unknown,
        )

    def files_of(self, line: bytes) -> list[tuple[str, bool]]:
        """Return the files a line refers to, (path, whether a video); none of a line that cannot be read."""
        try:
            images, video = self._files(media_of(_json(line), FIELDS, DataError))
        except DataError:
            return []
        return [(path, False) for path in images] if video is None else [(video, True)]

    def _files(self, media: Media) -> tuple[tuple[str, ...], str | None]:
        """Return the paths of a sample's images, and the path of its video if it has no images."""
        images = tuple(self.resolve(name, media.listed) for name in media.images)
        return images, None if media.video is None else as_folder(self.resolve(media.video, False))

    def resolve(self, name: str, multi_image: bool) -> str:
        """Return the path of an image or video of this dataset."""
        if name.startswith(("http://", "https://")):
            if self.http_root is None:
                raise DataError(f"image {printable(name)}: the dataset has no http_root")
            return os.path.join(self.http_root, hashlib.sha256(name.encode()).hexdigest())
        if multi_image and name.startswith("/mnt"):
            return name
        root = self.root2 if multi_image and self.root2 is not None else self.root
        if name.startswith("s3://"):
            return root + name
        return os.path.join(root, name)


@dataclass(frozen=True)
class LineBlock:
    """Consecutive samples of an annotation file, which any process can read in one go without counting lines."""

    rows: np.ndarray
    """int64 [n, 2]: start of each line, its number from 1."""

    def read(self, annotation: str) -> list[tuple[int, bytes]]:
        """Return number and content of each line."""
        first = int(self.rows[0, 0])
        with open(annotation, "rb") as stream:
            stream.seek(first)
            block = stream.read(int(self.rows[-1, 0]) - first) + stream.readline(LARGEST_LINE + 1)
        starts = [*(self.rows[:, 0] - first).tolist(), len(block)]
        return [
            (number, block[start:end])
            for number, start, end in zip(self.rows[:, 1].tolist(), starts[:-1], starts[1:], strict=True)
        ]


def _json(line: bytes) -> dict[str, Any]:
    if len(line) > LARGEST_LINE:
        raise DataError(f"a line of more than {LARGEST_LINE} bytes, the most that is read")
    # Fields that are not used may hold NaN, as Python writes it.
    content = parse_json(line, "the line", DataError, constants=True)
    if not isinstance(content, dict):
        raise DataError(f"the line holds {kind_of(content)}, expected an object")
    return content


def as_folder(path: str) -> str:
    """Return the path of a video with a slash behind it where it is a folder of frames."""
    return path + "/" if not path.endswith("/") and os.path.isdir(path) else path


def _asks_of_video(turn: tuple[str, str]) -> bool:
    """Return whether a question begins with `<video>` alone in its line, which is no HTML that is asked about."""
    return turn[0] == "human" and turn[1].lstrip().partition("\n")[0].rstrip() == "<video>"


def _clip(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    numbers = clip if isinstance(clip, list) and len(clip) == 2 else ()
    if numbers and all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        start, end = numbers
        if abs(start) <= _LONGEST_VIDEO and abs(end) <= _LONGEST_VIDEO:  # neither is NaN then
            return float(start), float(end)
    path = "; the path of a video belongs into the field 'video'" if isinstance(clip, str) else ""
    raise DataError(f"clip: expected [start, end] in seconds, found {ascii(clip)[:80]}{path}")
