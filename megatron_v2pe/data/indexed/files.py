"""The files samples refer to, each measured once when a set is built and checked again whenever it is read."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_v2pe.data.decoding import decoding
from megatron_v2pe.data.image_transform import opened_image
from megatron_v2pe.data.indexed.layout import FILE, FILES, IMAGES, PATHS
from megatron_v2pe.data.indexed.megatron_format import Sequences
from megatron_v2pe.data.types import Picture
from megatron_v2pe.data.video import list_frames
from megatron_v2pe.errors import DataError

LOOKUP, LOOKUP_ROW = "lookup.bin", np.dtype([("hash", "<u8"), ("number", "<i8")])
"""Records sorted by the hash of a path; there while a set is built."""
_BLOCK = 1 << 22


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
        whole: decode the pixels too, so that damage behind the header is found.

    Raises:
        DataError: no such file, not an image, damaged.
    """
    content = read_file(path)
    with opened_image(path, content) as image:
        if whole:
            with decoding(path, "damaged image"):
                image.load()
        return Measured(len(content), hashlib.sha256(content).digest(), *image.size)


def measure_video(path: str) -> Measured:
    """Read a video file once, or list a folder of frames (ends with `/`): size and checksum, of a folder of its list.

    Raises:
        DataError: no such file or folder, unreadable.
    """
    if path.endswith("/"):
        sizes = [(os.path.basename(frame), os.path.getsize(frame)) for frame in list_frames(path)]
        return Measured(sum(size for _, size in sizes), hashlib.sha256(repr(sizes).encode()).digest())
    digest, size = hashlib.sha256(), 0
    with decoding(path, "cannot be read"), open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return Measured(size, digest.digest())


def read_file(path: str) -> bytes:
    """Return what a file holds.

    Raises:
        DataError: no such image, or it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        where = "" if os.path.isabs(path) else f" (from {os.getcwd()})"
        raise DataError(f"{path}: no such image{where}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


class FileTable:
    """The records of all files, memory-mapped: by number, or by path."""

    def __init__(self, folder: Path) -> None:
        """Open the table of a set, or of one being built."""
        self._folder = folder
        self.rows = map_records(folder / FILES, FILE)
        self._paths = map_records(folder / PATHS, np.dtype("u1"))

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.rows)

    def path(self, number: int) -> str:
        """Return a file's path."""
        start = int(self.rows["path"][number])
        end = int(self.rows["path"][number + 1]) if number + 1 < len(self.rows) else len(self._paths)
        return bytes(self._paths[start:end]).decode()

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

    def __init__(self, folder: Path, embedded: bool) -> None:
        """Open the files of a set."""
        self.table = FileTable(folder)
        self._copies = Sequences(folder / IMAGES) if embedded else None

    def open_picture(self, picture: Picture) -> Image.Image:
        """Read an image as RGB.

        Raises:
            DataError: missing, damaged, or changed since the set was built.
        """
        assert picture.file is not None
        # Of a folder of frames the list alone is recorded.
        content = None if self.table.rows["video"][picture.file] else self.content(picture.file)
        with opened_image(picture.path, content) as image, decoding(picture.path, "damaged image"):
            return image.convert("RGB")

    def content(self, number: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            DataError: missing, or changed since the set was built.
        """
        row = self.table.rows[number]
        path = self.table.path(number)
        embedded = self._copies is not None and row["copy"] >= 0
        content = self._copies[int(row["copy"])].tobytes() if self._copies is not None and embedded else read_file(path)
        if len(content) != row["size"]:
            raise DataError(
                f"{path}: {len(content)} bytes, {row['size']} when the data set was built: the image changed"
            )
        if hashlib.sha256(content).digest() != row["sha256"].tobytes():
            where = "the data set is damaged" if embedded else "the image changed"
            raise DataError(f"{path}: not the bytes the data set was built from (same size, other checksum): {where}")
        return content

    def check_video(self, number: int, path: str) -> None:
        """Check that a video is what the set was built from: a file by its size, a folder by names and sizes.

        Raises:
            DataError: it is gone, or has changed.
        """
        row = self.table.rows[number]
        if path.endswith("/"):
            found = measure_video(path)
            if found.sha256 != row["sha256"].tobytes():
                raise DataError(f"{path}: other frames than when the data set was built: the video changed")
            return
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size != row["size"]:
            state = "is gone" if size is None else f"has {size} bytes"
            raise DataError(f"{path}: {state}, {row['size']} when the data set was built: the video changed")


def map_records(path: Path, dtype: np.dtype) -> np.ndarray:
    """Return the records of a file, memory-mapped; none if it is empty."""
    if not path.stat().st_size:
        return np.empty(0, dtype)
    # A plain view of the map: the subclass runs Python code at every access.
    return np.memmap(path, mode="r", dtype=dtype).view(np.ndarray)


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little")
