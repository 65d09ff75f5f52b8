"""The files samples refer to, each measured once when a set is built and checked again whenever it is read."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_v2pe.data.image_files import as_rgb, decoding, opened_image
from megatron_v2pe.data.indexed.checksums import REMEDY
from megatron_v2pe.data.indexed.layout import FILE, FILES, IMAGES, PATHS, SetFiles
from megatron_v2pe.data.indexed.megatron_format import Sequences
from megatron_v2pe.data.types import Picture
from megatron_v2pe.data.video import check_frames, list_frames
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.files import check_regular, read_bytes
from megatron_v2pe.foreign.printable import printable

LOOKUP, LOOKUP_ROW = "lookup.bin", np.dtype([("hash", "<u8"), ("number", "<i8")])
"""Records sorted by the hash of a path; there while a set is built."""
_BLOCK = 1 << 22
_LARGEST_IMAGE = 1 << 32
"""Bytes of an image file, at most."""
_PATH = struct.Struct("<q")
_RECORD = struct.Struct("<qqiiq?32s")
assert _RECORD.size == FILE.itemsize


@dataclass(frozen=True)
class Measured:
    """What is recorded of a file."""

    size: int
    sha256: bytes
    width: int = 0
    height: int = 0


def measure_image(path: str, whole: bool) -> Measured:
    """Read an image file once: checksum, size in pixels.

    Args:
        path: of the file.
        whole: read the pixels too, so that damage behind the header, and values that are not read, are found.

    Raises:
        DataError: no such file, not an image, damaged.
    """
    content = read_file(path)
    with opened_image(path, content) as image:
        size = image.size
        if whole:
            as_rgb(image, path)
        return Measured(len(content), hashlib.sha256(content).digest(), *size)


def measure_video(path: str, whole: bool = False) -> Measured:
    """Read a video file once, or list a folder of frames (ends with `/`): size and checksum, of a folder of its list.

    Args:
        path: of the file or folder.
        whole: decode every frame, too.

    Raises:
        DataError: no such file or folder, unreadable, damaged.
    """
    if whole:
        check_frames(path)
    if path.endswith("/"):
        sizes = [(os.path.basename(frame), os.path.getsize(frame)) for frame in list_frames(path)]
        return Measured(sum(size for _, size in sizes), hashlib.sha256(repr(sizes).encode()).digest())
    digest, size = hashlib.sha256(), 0
    _check_there(path, "video")
    with decoding(path, "cannot be read"), open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return Measured(size, digest.digest())


def read_file(path: str) -> bytes:
    """Return what an image file holds.

    Raises:
        DataError: no such image, no regular file, or it cannot be read.
    """
    _check_there(path, "image")
    return read_bytes(path, DataError, _LARGEST_IMAGE)


def _check_there(path: str, kind: str) -> None:
    if not os.path.exists(path):
        where = "" if os.path.isabs(path) else f" (from {os.getcwd()})"
        raise DataError(f"{printable(path)}: no such {kind}{where}")
    check_regular(path, DataError)


@dataclass(frozen=True)
class FileRow:
    """The record of a file."""

    path: str
    size: int
    copy: int
    video: bool
    sha256: bytes


class FileTable:
    """The records of all files, memory-mapped: by number, or by path."""

    def __init__(self, folder: Path, files: SetFiles | None = None) -> None:
        """Open the table of a set, or of one being built.

        Args:
            folder: of the set.
            files: of the set, with checksums; by default nothing is compared with any.

        Raises:
            DataError: it is damaged.
        """
        files = files or SetFiles(folder)
        self._folder, self._records, self._paths = folder, files.open(FILES), files.open(PATHS)
        self.rows = self._records.records(FILE)
        """`FILE` records, unchecked."""

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.rows)

    def row(self, number: int) -> FileRow:
        """Return the record of a file.

        Raises:
            DataError: it is damaged.
        """
        start, record, last = number * FILE.itemsize, self._records, number + 1 == len(self.rows)
        if number < 0:
            raise DataError(f"{printable(record.path)}: file {number} is asked for: the data set is damaged; {REMEDY}")
        record.check(start, start + FILE.itemsize + (0 if last else _PATH.size))
        first, size, _, _, copy, video, sha256 = _RECORD.unpack_from(record.buffer, start)
        end = self._paths.size if last else _PATH.unpack_from(record.buffer, start + FILE.itemsize)[0]
        self._paths.check(first, end)
        try:
            path = str(self._paths.buffer[first:end], "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{printable(self._paths.path)}: path {number} is not UTF-8: {error}; {REMEDY}") from error
        return FileRow(path, size, copy, video, sha256)

    def path(self, number: int) -> str:
        """Return a file's path; raises what `row` raises."""
        return self.row(number).path

    def find(self, path: str, video: bool) -> int:
        """Return the number of a path in its use as an image or as a video; needs the table `write_lookup` writes.

        Raises:
            KeyError: it is not in the table.
        """
        wanted, lookup = _hash(path), self._lookup
        place = int(np.searchsorted(lookup["hash"], wanted))
        while place < len(lookup) and lookup["hash"][place] == wanted:
            number = int(lookup["number"][place])
            if self.path(number) == path and self.rows["video"][number] == video:
                return number
            place += 1
        raise KeyError(path)

    def write_lookup(self) -> None:
        """Write the table `find` needs, so that no process that asks has to make it."""
        lookup = np.empty(len(self), LOOKUP_ROW)
        lookup["hash"] = np.fromiter((_hash(self.path(number)) for number in range(len(self))), np.uint64, len(self))
        lookup["number"] = np.arange(len(self))
        lookup[np.argsort(lookup["hash"], kind="stable")].tofile(self._folder / LOOKUP)

    @cached_property
    def _lookup(self) -> np.ndarray:
        return map_records(self._folder / LOOKUP, LOOKUP_ROW)


class FileStore:
    """Images of an indexed data set, embedded or from their paths, never other than when it was built."""

    def __init__(self, folder: Path, embedded: bool, files: SetFiles | None = None) -> None:
        """Open the files of a set; arguments and errors are those of `FileTable`."""
        self.table = FileTable(folder, files)
        self._copies = Sequences(folder / IMAGES, files) if embedded else None
        self._images = printable(folder / f"{IMAGES}.bin")

    def open_picture(self, picture: Picture) -> Image.Image:
        """Read an image as RGB.

        Raises:
            DataError: missing, damaged, or changed since the set was built.
        """
        assert picture.file is not None
        row = self.table.row(picture.file)
        # Of a folder of frames the list alone is recorded.
        content = None if row.video else self._content(row)
        with opened_image(picture.path, content) as image:
            return as_rgb(image, picture.path, picture.operations)

    def content(self, number: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            DataError: missing, or changed since the set was built.
        """
        return self._content(self.table.row(number))

    def _content(self, row: FileRow) -> bytes:
        embedded = self._copies is not None and row.copy >= 0
        content = self._copy(row) if embedded else read_file(row.path)
        name, changed = printable(row.path), "the image changed"
        if embedded:
            name, changed = f"{self._images}: {name}", f"the data set is damaged; {REMEDY}"
        if len(content) != row.size:
            raise DataError(f"{name}: {len(content)} bytes, {row.size} when the data set was built: {changed}")
        if hashlib.sha256(content).digest() != row.sha256:
            raise DataError(f"{name}: not the bytes the data set was built from (same size, other checksum): {changed}")
        return content

    def _copy(self, row: FileRow) -> bytes:
        """Return an embedded image."""
        assert self._copies is not None
        if row.copy >= len(self._copies):
            raise DataError(
                f"{self._images}: image {row.copy} of {len(self._copies)} is asked for: the data set is damaged or was "
                f"built wrongly; {REMEDY}"
            )
        return self._copies[row.copy].tobytes()

    def check_copies(self) -> Iterator[int]:
        """Compare every embedded image with its checksum; yield the bytes of each.

        Raises:
            DataError: one is damaged.
        """
        seen = set[int]()
        for number in range(len(self.table) if self._copies is not None else 0):
            row = self.table.row(number)
            if row.copy >= 0 and row.copy not in seen:
                seen.add(row.copy)
                yield len(self._content(row))

    def check_video(self, number: int, path: str) -> None:
        """Check that a video is what the set was built from: a file by its size, a folder by names and sizes.

        Raises:
            DataError: it is gone, or has changed.
        """
        row = self.table.row(number)
        shown = printable(path)
        if path.endswith("/"):
            if measure_video(path).sha256 != row.sha256:
                raise DataError(f"{shown}: other frames than when the data set was built: the video changed")
            return
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size != row.size:
            state = "is gone" if size is None else f"has {size} bytes"
            raise DataError(f"{shown}: {state}, {row.size} when the data set was built: the video changed")


def map_records(path: Path, dtype: np.dtype) -> np.ndarray:
    """Return the records of a file, memory-mapped and unchecked; none if it is empty."""
    return SetFiles(path.parent).open(path.name).records(dtype)


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little")
