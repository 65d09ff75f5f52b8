"""The data list (meta JSON) and its annotation files (JSONL), lines read when they are wanted.

Formats are those of the V2PE data: see `docs/data.md`. Opening a list reads each annotation file once, for the offsets
of its lines; a sample's line is parsed when it is drawn.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.data.types import Sample, SampleId
from megatron_v2pe.errors import ConfigError, DataError

KNOWN_FIELDS = (
    "annotation",
    "root",
    "root2",
    "http_root",
    "data_augment",
    "repeat_time",
    "max_dynamic_patch",
    "dynamic_image_size",
    "weight",
    "length",
)
"""Fields of an entry. `length` documents the number of lines and is compared with it nowhere."""


@dataclass(frozen=True)
class Dataset:
    """One entry of the data list."""

    name: str
    annotation: str
    root: str = ""
    """Put before image paths."""
    root2: str | None = None
    """Put before the paths of multi-image samples instead."""
    http_root: str | None = None
    """Folder of images from the web, named by the SHA-256 of their address."""
    data_augment: bool = False
    """Apply the JPEG augmentation."""
    repeat_time: float = 1.0
    """How often each line is seen per epoch; a fraction takes a random part of the lines."""
    weight: float | None = None
    """Share of an epoch relative to the other data sets', in place of its size; all have one or none."""
    max_dynamic_patch: int | None = None
    """Overrides the run's setting."""
    dynamic_image_size: bool | None = None
    """Overrides the run's setting."""

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Start of each non-empty line and its number from 1: int64 [lines, 2]."""
        rows, position = array("q"), 0  # 16 bytes a line; tuples in a list took 150
        with open(self.annotation, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    rows.extend((position, number))
                position += len(line)
        return np.asarray(rows).reshape(-1, 2)

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
            line = stream.readline()
        return self.parse(line, int(self._offsets[index, 1]))

    def block(self, first: int, count: int) -> LineBlock:
        """Return where `count` samples from `first` on stand in the annotation file."""
        return LineBlock(self._offsets[first : first + count])

    def blocks(self, lines: int, size: int) -> Iterator[LineBlock]:
        """Yield where samples stand in the annotation file: `lines` of them at most, of about `size` bytes at most."""
        starts, first = self._offsets[:, 0], 0
        while first < len(starts):
            last = min(first + lines, max(int(np.searchsorted(starts, starts[first] + size)), first + 1))
            yield LineBlock(self._offsets[first:last])
            first = last

    def parse(self, line: bytes, number: int) -> Sample:
        """Parse a line of the annotation file, its number counted from 1; errors as of `read`."""
        content = _json(line)
        images, video = self._files(content)
        return Sample(
            id=SampleId(self.name, number, self.annotation),
            conversations=_turns(content.get("conversations")),
            images=images,
            multi_image=bool(images) and isinstance(content["image"], list),
            video=video,
            clip=_clip(content.get("clip")),
        )

    def files_of(self, line: bytes) -> list[tuple[str, bool]]:
        """Return the files a line refers to, (path, whether a video); none of a line that cannot be read."""
        try:
            images, video = self._files(_json(line))
        except DataError:
            return []
        return [(path, False) for path in images] if video is None else [(video, True)]

    def _files(self, content: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
        """Paths of a sample's images, and that of its video if it has none."""
        image, video = content.get("image"), content.get("video")
        multi = isinstance(image, list)
        names = tuple(image) if isinstance(image, list) else (image,) if image else ()
        if not all(_is_path(name) for name in names):
            raise DataError(f"image: expected a path or a list of paths, found {ascii(image)[:80]}")
        if video and not _is_path(video):
            raise DataError(f"video: expected a path, found {ascii(video)[:80]}")
        images = tuple(self.resolve(name, multi) for name in names)
        return images, self.resolve(video, False) if video and not names else None

    def resolve(self, name: str, multi_image: bool) -> str:
        """Return the path of an image or video of this dataset."""
        if name.startswith(("http://", "https://")):
            if self.http_root is None:
                raise DataError(f"image {name}: the dataset has no http_root")
            return os.path.join(self.http_root, hashlib.sha256(name.encode()).hexdigest())
        if multi_image and name.startswith("/mnt"):
            return name
        root = self.root2 if multi_image and self.root2 is not None else self.root
        if name.startswith("s3://"):
            return root + name
        return os.path.join(root, name)


@dataclass(frozen=True)
class LineBlock:
    """Consecutive samples of an annotation file, to be read in one go, also by a process that never counted lines."""

    rows: np.ndarray
    """int64 [n, 2]: start of each line, its number from 1."""

    def read(self, annotation: str) -> list[tuple[int, bytes]]:
        """Return number and content of each line."""
        first = int(self.rows[0, 0])
        with open(annotation, "rb") as stream:
            stream.seek(first)
            block = stream.read(int(self.rows[-1, 0]) - first) + stream.readline()
        starts = [*(self.rows[:, 0] - first).tolist(), len(block)]
        return [
            (number, block[start:end])
            for number, start, end in zip(self.rows[:, 1].tolist(), starts[:-1], starts[1:], strict=True)
        ]


def read_data_list(path: str | Path) -> list[Dataset]:
    """Read a data list.

    Raises:
        ConfigError: the file or an annotation file is missing, an entry lacks a field or has an unknown one.
    """
    content = _read_list(path)
    datasets = [read_entry(name, entry, path) for name, entry in content.items()]
    for dataset in datasets:
        if not len(dataset):
            raise ConfigError(f"{path}: dataset {dataset.name!r}: {dataset.annotation} holds no samples")
    without = [dataset.name for dataset in datasets if dataset.weight is None]
    if without and len(without) < len(datasets):
        raise ConfigError(
            f"{path}: {', '.join(without)} without a weight, the others have one; give all a weight or none"
        )
    return datasets


def read_entry(name: str, entry: Any, path: str | Path) -> Dataset:
    """Read one entry of the data list in `path`.

    Raises:
        ConfigError: a field is missing, unknown or wrong, or the annotation file is not there.
    """
    where = f"{path}: dataset {name!r}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected an object, found {type(entry).__name__}")
    if unknown := sorted(set(entry) - set(KNOWN_FIELDS)):
        raise ConfigError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(KNOWN_FIELDS)}")
    for field in ("annotation", "data_augment", "repeat_time"):
        if field not in entry:
            raise ConfigError(f"{where}: field {field!r} is missing")
    annotation = str(entry["annotation"])
    if not annotation.endswith("jsonl"):
        raise ConfigError(f"{where}: annotation {annotation} is not a .jsonl file")
    if not Path(annotation).is_file():
        raise ConfigError(f"{where}: annotation {annotation}: no such file (paths are relative to {os.getcwd()})")
    for field in ("data_augment", "dynamic_image_size"):
        if not isinstance(entry.get(field), bool | None):
            raise ConfigError(f"{where}: {field} is {entry[field]!r}, expected true or false")
    repeat, weight = _share(where, entry)
    patches = entry.get("max_dynamic_patch")
    if patches is not None and (isinstance(patches, bool) or not isinstance(patches, int) or patches < 1):
        raise ConfigError(f"{where}: max_dynamic_patch is {patches!r}, expected a whole number above 0")
    return Dataset(
        name=name,
        annotation=annotation,
        root=_with_slash(entry.get("root") or ""),
        root2=_with_slash(entry["root2"]) if entry.get("root2") else None,
        http_root=entry.get("http_root"),
        data_augment=bool(entry["data_augment"]),
        repeat_time=repeat,
        weight=weight,
        max_dynamic_patch=patches,
        dynamic_image_size=entry.get("dynamic_image_size"),
    )


def _read_list(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"data.meta_path: {path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: expected an object of datasets by name")
    return content


def read_shares(path: str | Path) -> dict[str, tuple[float, float | None]]:
    """Return `repeat_time` and `weight` of each data set of a data list; its annotations need not be there.

    Raises:
        ConfigError: the list cannot be read, or one of the two is wrong.
    """
    content = _read_list(path)
    return {name: _share(f"{path}: dataset {name!r}", entry) for name, entry in content.items()}


def _share(where: str, entry: Mapping[str, Any]) -> tuple[float, float | None]:
    """Read how often a data set is seen: `repeat_time` and `weight`."""
    numbers: list[float | None] = []
    for field in ("repeat_time", "weight"):
        value = entry.get(field)
        if value is not None:
            number = not isinstance(value, bool) and isinstance(value, int | float)
            if not number or not 0 < value < math.inf:
                raise ConfigError(f"{where}: {field} is {value!r}, expected a number above 0")
            value = float(value)
        numbers.append(value)
    repeat, weight = numbers
    if repeat is None:
        raise ConfigError(f"{where}: repeat_time is None, expected a number above 0")
    return repeat, weight


def _json(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of 5000 digits, 1000 brackets
        raise DataError(f"malformed JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"the line holds a {type(content).__name__}, expected an object")
    return content


def _with_slash(root: str) -> str:
    return root if not root or root.endswith(("/", ":")) else root + "/"


def _is_path(name: Any) -> bool:
    return isinstance(name, str) and "\0" not in name and _is_unicode(name)


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can name (`\\ud83d`) and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clip(clip: Any) -> tuple[float, float] | None:
    if not clip:
        return None
    try:
        start, end = map(float, clip if isinstance(clip, list) else ())
        if math.isfinite(start) and math.isfinite(end):
            return start, end
    except (TypeError, ValueError, OverflowError):
        pass  # refused below
    raise DataError(f"clip: expected [start, end] in seconds, found {ascii(clip)[:80]}")


def _turns(conversations: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(conversations, list) or not conversations:
        raise DataError("field 'conversations' is missing or empty")
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(conversations, 1):
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise DataError(f"conversations: turn {number} has no text 'from' and 'value'")
        if not _is_unicode(text):
            raise DataError(f"conversations: turn {number} holds half a surrogate pair, which is no text")
        if role == "gpt" and number > 1 and not text.strip():
            raise DataError(f"conversations: turn {number} is an empty answer; the model would learn to end at once")
        turns.append((role, text))
    if turns[0][0] == "gpt":
        turns = turns[1:]
    if not turns:
        raise DataError("field 'conversations' holds no question")
    return tuple(turns)
