"""Which image and video files the lines of an annotation file name, and what else is wrong with a line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from megatron_v2pe.data.annotations import Dataset, LineBlock
from megatron_v2pe.errors import DataError
from megatron_v2pe.workshop.checking import samples
from megatron_v2pe.workshop.checking.samples import SampleChecker

LINES_AT_ONCE, BYTES_AT_ONCE = 128, 1 << 23
"""Size of a block, about."""


@dataclass(frozen=True)
class Lines:
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


def blocks_of(owner: int, dataset: Dataset) -> Iterator[Lines]:
    """Yield the lines of a data set block by block, in order; each may go to another process."""
    bare = replace(dataset)  # without the offsets of all lines, which need not travel
    done, total = 0, os.path.getsize(dataset.annotation)
    blocks = list(dataset.blocks(LINES_AT_ONCE, BYTES_AT_ONCE))
    for block, following in zip_longest(blocks, blocks[1:]):
        end = total if following is None else int(following.rows[0, 0])
        yield Lines(owner, bare, block, end - done)
        done = end


def named_files(lines: Lines, checker: SampleChecker | None = None) -> NamedFiles:
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
