"""Whether training could use all a data list names: annotation files, their lines, the images and videos of all lines.

Lines are parsed in worker processes, and taken through the steps of training (`samples`); whether files exist is found
by listing each folder once, so that millions of images take hardly longer than reading the annotations. `headers` reads
the header of every file, `full` all of its pixels: what is not wrong then, training does not refuse either.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.data_list import read_entries, read_entry
from megatron_v2pe.data.image_files import image_size, open_image
from megatron_v2pe.data.image_operations import Operations
from megatron_v2pe.data.processes import Processes
from megatron_v2pe.data.video import check_frames, frame_range, list_frames
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.workshop.checking.named_files import (
    DatasetLines,
    FolderNames,
    Folders,
    NamedFiles,
    blocks_of,
    named_files,
)
from megatron_v2pe.workshop.checking.samples import SampleChecker, start

FILES_AT_ONCE = 64
"""Files a process reads before it reports."""
Look = Literal["names", "headers", "full"]
"""What is looked at: whether files are there (`names`), also their headers, or also all of their pixels."""


@dataclass(frozen=True)
class Fault:
    """Something that cannot be used, and where it is asked for."""

    path: str
    """The file; of a bad line the annotation file."""
    line: int
    """First line of the annotation file that names it, from 1."""
    reason: str


@dataclass
class DatasetCheck:
    """What was found in one data set. The first faults of each kind are kept, all are counted."""

    name: str
    annotation: str
    problem: str | None = None
    """Why the entry cannot be used at all."""
    annotation_missing: bool = False
    lines: int = 0
    """Lines that are not empty."""
    images: int = 0
    """Images and videos the lines name, each as often as it is named."""
    files: int = 0
    """How many different ones."""
    num_missing: int = 0
    num_bad_lines: int = 0
    num_damaged: int | None = None
    """Files that cannot be read; None: files were not read."""
    unread: dict[str, int] = field(default_factory=dict)
    """Fields that no code reads and that are not usual either, with how many lines have each."""
    left_out: int = 0
    """Files in folders of frames that are no frames: hidden ones, and what is no image."""
    missing: list[Fault] = field(default_factory=list)
    bad_lines: list[Fault] = field(default_factory=list)
    damaged: list[Fault] = field(default_factory=list)
    missing_folders: dict[str, int] = field(default_factory=dict)
    """Missing files by their folder."""

    @property
    def complete(self) -> bool:
        """Return whether nothing was found to be wrong."""
        faults = self.num_missing + self.num_bad_lines + (self.num_damaged or 0)
        return self.problem is None and not self.annotation_missing and not faults


def check_data_list(
    path: str | Path,
    workers: int = 0,
    full: bool = False,
    most_kept: int = 5,
    headers: bool = False,
    checker: SampleChecker | None = None,
) -> list[DatasetCheck]:
    """Check everything a data list names; paths are relative to the current folder, as in training.

    Args:
        path: path of the data list.
        workers: processes that parse lines and read headers; 0: this one alone.
        full: also read every image and video to the last pixel.
        most_kept: how many faults of a kind are kept for each data set; all are counted.
        headers: also read the header of every image and video.
        checker: looks at each sample; by default without a tokenizer.

    Raises:
        ConfigError: the list itself cannot be read; what is wrong with an entry stands in its check.
        DataError: a worker process was killed.
    """
    look: Look = "full" if full else "headers" if headers else "names"
    checker = checker or SampleChecker.of_text(reads_files=look != "names")
    opened = [_open(name, entry, path) for name, entry in read_entries(path).items()]
    _check_weights([check for check, _ in opened], [dataset for _, dataset in opened])
    tallies = [_Tally(check, most_kept) for check, _ in opened]
    datasets = [dataset for _, dataset in opened]
    folders = FolderNames()
    find = named_files if workers else partial(named_files, checker=checker)
    with Processes(workers, __name__, start, (checker,)) as processes:
        size = sum(os.path.getsize(dataset.annotation) for dataset in datasets if dataset is not None)
        with progress_bar(
            total=size, desc="read lines", unit="B", unit_scale=True, unit_divisor=1024, delay=1.0
        ) as bar:
            for lines, named in processes.map(find, _all_lines(datasets, tallies)):
                tallies[lines.owner].add(named, folders)
                bar.update(lines.size)
        if look != "names":
            count = sum(check.files - check.num_missing for check, _ in opened)
            with progress_bar(
                total=count, desc=f"read {'files' if full else 'headers'}", unit=" files", delay=1.0
            ) as bar:
                for some, reasons in processes.map(_look, _some_files(tallies, datasets, full)):
                    tallies[some.owner].add_damaged(some, reasons)
                    bar.update(len(reasons))
    return [check for check, _ in opened]


def _open(name: str, entry: Any, path: str | Path) -> tuple[DatasetCheck, Dataset | None]:
    annotation = entry.get("annotation") if isinstance(entry, Mapping) else None
    check = DatasetCheck(name, str(annotation or ""))
    if isinstance(annotation, str) and "\0" not in annotation and not os.path.exists(annotation):
        check.annotation_missing = True
        return check, None
    try:
        return check, read_entry(name, entry, path)
    except ConfigError as error:
        check.problem = str(error)
        return check, None


def _check_weights(checks: Sequence[DatasetCheck], datasets: Sequence[Dataset | None]) -> None:
    """Note a weight that is missing where other data sets have one, which training refuses."""
    known = [(check, dataset.weight) for check, dataset in zip(checks, datasets, strict=True) if dataset is not None]
    without = [check for check, weight in known if weight is None]
    if len(without) == len(known):
        return
    for check in without:
        check.problem = "no weight, the other data sets have one; give all a weight or none"


def _all_lines(datasets: Sequence[Dataset | None], tallies: Sequence[_Tally]) -> Iterator[DatasetLines]:
    """Yield the lines of all data sets, counting them on the way."""
    for owner, (dataset, tally) in enumerate(zip(datasets, tallies, strict=True)):
        if dataset is None:
            continue
        try:
            tally.check.lines = len(dataset)
        except (OSError, DataError) as error:
            tally.check.problem = f"{printable(dataset.annotation)}: cannot be read: {error}"
            continue
        if not tally.check.lines:
            tally.check.problem = f"{printable(dataset.annotation)} holds no samples"
        yield from blocks_of(owner, dataset)


@dataclass(frozen=True)
class _Files:
    """Some files of one data set that are to be read."""

    owner: int
    files: tuple[tuple[str, bool], ...]
    """Path, and whether it is a video."""
    operations: Operations
    full: bool
    """Read all of them, not the headers alone."""


def _some_files(tallies: Sequence[_Tally], datasets: Sequence[Dataset | None], full: bool) -> Iterator[_Files]:
    for owner, (tally, dataset) in enumerate(zip(tallies, datasets, strict=True)):
        files = tally.found()
        while some := tuple(islice(files, FILES_AT_ONCE)):
            yield _Files(owner, some, () if dataset is None else dataset.opening.operations, full)


def _look(some: _Files) -> list[str | None]:
    """Read files; return what is wrong with each, None for nothing."""
    reasons = list[str | None]()
    for path, video in some.files:
        try:
            if some.full:
                check_frames(path, some.operations) if video else open_image(path, operations=some.operations)
            elif video:
                list_frames(path) if path.endswith("/") else frame_range(path, None)
            else:
                image_size(path, some.operations)
            reasons.append(None)
        except DataError as error:
            reasons.append(str(error))
    return reasons


class _Use:
    """The files that one data set uses as images, or as videos."""

    def __init__(self, video: bool) -> None:
        self.video, self.count = video, 0
        self.lines: Folders = {}
        """First line of every file named so far."""
        self.missing: dict[str, set[str]] = {}

    def add(self, named: Folders, folders: FolderNames) -> Iterator[tuple[int, str, str]]:
        """Add named files; yield line, folder and name of those that are not there."""
        for folder, names in named.items():
            known = self.lines.setdefault(folder, {})
            new = names.keys() - known.keys()
            known.update((name, names[name]) for name in new)
            self.count += len(new)
            gone = new - folders.names(folder)
            if "" in new and (not self.video or folders.without_frames(folder)):
                gone |= {""}
            for name in gone:
                self.missing.setdefault(folder, set()).add(name)
                yield names[name], folder, name

    def found(self) -> Iterator[str]:
        """Yield the files that are there, folder by folder."""
        for folder, names in self.lines.items():
            for name in sorted(names.keys() - self.missing.get(folder, set())):
                yield os.path.join(folder, name)


class _Tally:
    """Adds up what is found in one data set."""

    def __init__(self, check: DatasetCheck, most_kept: int) -> None:
        self.check, self._most_kept = check, most_kept
        self._images, self._videos = _Use(video=False), _Use(video=True)

    def add(self, named: NamedFiles, folders: FolderNames) -> None:
        """Add the files that the next lines name."""
        check = self.check
        check.images += named.mentions
        check.num_bad_lines += len(named.bad)
        self._keep(check.bad_lines, (Fault(check.annotation, line, reason) for line, reason in named.bad))
        for name, count in named.unread.items():
            check.unread[name] = check.unread.get(name, 0) + count
        check.left_out += sum(
            folders.left_out(folder)
            for folder, names in named.videos.items()
            if "" in names and "" not in self._videos.lines.get(folder, {})
        )
        gone = [*self._images.add(named.images, folders), *self._videos.add(named.videos, folders)]
        check.files = self._images.count + self._videos.count
        for line, folder, name in sorted(gone):
            check.missing_folders[folder] = check.missing_folders.get(folder, 0) + 1
            check.num_missing += 1
            if len(check.missing) < self._most_kept:
                check.missing.append(Fault(os.path.join(folder, name), line, _why_missing(folder, name, folders)))

    def found(self) -> Iterator[tuple[str, bool]]:
        """Yield the files that are there and whether each is used as a video."""
        for use in (self._images, self._videos):
            yield from ((path, use.video) for path in use.found())

    def add_damaged(self, some: _Files, reasons: Sequence[str | None]) -> None:
        """Add files that were read, and what is wrong with each."""
        check, damaged = self.check, 0
        for (path, video), reason in zip(some.files, reasons, strict=True):
            if reason is not None:
                folder, name = os.path.split(path)
                damaged += 1
                use = self._videos if video else self._images
                self._keep(check.damaged, [Fault(path, use.lines[folder][name], reason)])
        check.num_damaged = (check.num_damaged or 0) + damaged

    def _keep(self, kept: list[Fault], faults: Iterable[Fault]) -> None:
        kept.extend(islice(faults, self._most_kept - len(kept)))


def _why_missing(folder: str, name: str, folders: FolderNames) -> str:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return folders.why_missing(folder)
    if name:
        return "a folder, expected a file" if os.path.isdir(path) else "not a regular file"
    return folders.without_frames(folder) or "a folder, expected a file"
