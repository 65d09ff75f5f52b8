"""Which image and video files the lines of an annotation file name, whether they exist, and which lines are faulty.

Files are looked for by listing each folder once: one system call for many files instead of one for each.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from megatron_v2pe.data.annotations import Dataset, LineBlock
from megatron_v2pe.data.video import look_into
from megatron_v2pe.errors import DataError
from megatron_v2pe.workshop.checking import samples
from megatron_v2pe.workshop.checking.samples import SampleChecker

LINES_AT_ONCE, BYTES_AT_ONCE = 128, 1 << 23
"""Size of a block, about."""


@dataclass(frozen=True)
class DatasetLines:
    """A block of lines of one data set."""

    owner: int
    """Number of the data set in the data list."""
    dataset: Dataset
    block: LineBlock
    size: int
    """Size in bytes, empty lines before and between included."""


Folders = dict[str, dict[str, int]]
"""Folder -> name -> first line, as `os.path.split` divides a path: the name of a folder of frames is empty."""


@dataclass(frozen=True)
class NamedFiles:
    """The files that some lines name."""

    mentions: int
    """How many files are named; one that is named twice counts twice."""
    images: Folders
    """Files used as images."""
    videos: Folders
    """Files used as videos; the same file may be both."""
    bad: tuple[tuple[int, str], ...]
    """Number of each line that cannot be used, and why."""
    unread: dict[str, int] = field(default_factory=dict)
    """Fields that no code reads and that are not usual either, with how many lines have each."""


def blocks_of(owner: int, dataset: Dataset) -> Iterator[DatasetLines]:
    """Yield the lines of a data set block by block, in order; each may go to another process."""
    bare = replace(dataset)  # without the offsets of all lines, which need not travel
    done, total = 0, os.path.getsize(dataset.annotation)
    blocks = list(dataset.blocks(LINES_AT_ONCE, BYTES_AT_ONCE))
    for block, following in zip_longest(blocks, blocks[1:]):
        end = total if following is None else int(following.rows[0, 0])
        yield DatasetLines(owner, bare, block, end - done)
        done = end


def named_files(lines: DatasetLines, checker: SampleChecker | None = None) -> NamedFiles:
    """Parse lines and return the files they name.

    Args:
        lines: lines of one data set.
        checker: looks at each sample; by default the one this process was started with.
    """
    checker = checker or samples.current()
    mentions, images, videos, bad = 0, Folders(), Folders(), list[tuple[int, str]]()
    unread = Counter[str]()
    for number, line in lines.block.read(lines.dataset.annotation):
        try:
            sample = lines.dataset.parse(line, number)
        except DataError as error:
            bad.append((number, str(error)))
            continue
        unread.update(sample.unknown)
        if checker is not None and (reason := checker.problem(lines.dataset, sample)) is not None:
            bad.append((number, reason))
        for folders, paths in ((images, sample.images), (videos, () if sample.video is None else (sample.video,))):
            for path in paths:
                folder, name = os.path.split(path)
                folders.setdefault(folder, {}).setdefault(name, number)
                mentions += 1
    return NamedFiles(mentions, images, videos, tuple(bad), dict(unread))


class FolderNames:
    """Names of the files in folders, kept once listed."""

    def __init__(self) -> None:
        """Start with nothing listed."""
        self._names: dict[str, frozenset[str]] = {}
        self._reasons: dict[str, str] = {}
        self._frames: dict[str, tuple[str | None, int]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Return the files of a folder; of one that is not there none.

        Where there are any, the empty name is among them: it stands for the folder itself, as `os.path.split` has it.
        """
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        return self._names[folder]

    def why_missing(self, folder: str) -> str:
        """Return why a file is missing from a folder that was listed."""
        return self._reasons.get(folder, "no such file")

    def without_frames(self, folder: str) -> str | None:
        """Return why a folder that is there is no video, None where it is one."""
        return self._look_into(folder)[0]

    def left_out(self, folder: str) -> int:
        """Return how many files of a folder of frames are no frames."""
        return self._look_into(folder)[1]

    def _look_into(self, folder: str) -> tuple[str | None, int]:
        """Return why a folder is no video, and how many files in it are no frames."""
        if folder not in self._frames:
            try:
                found = look_into(folder + "/")
            except DataError as error:
                self._frames[folder] = str(error), 0
            else:
                others = len(found.left_out)
                reason = None if found.frames else f"no frames in the folder, {others} other files"
                self._frames[folder] = reason, others
        return self._frames[folder]

    def _list(self, folder: str) -> frozenset[str]:
        try:
            with os.scandir(folder or ".") as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            self._reasons[folder] = "no such folder"
            return frozenset()
        except OSError as error:
            self._reasons[folder] = f"the folder cannot be read: {error.strerror}"
            return frozenset()
        return frozenset([*names, ""] if names else names)
