"""Whether everything a data list names is there: annotation files, their lines, the images and videos of all lines.

Lines are parsed in worker processes; whether files exist is found by listing each folder once, so that millions of
images take hardly longer than reading the annotations. With `full`, the header of every file is read, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_v2pe.data.checking.folder_names import FolderNames
from megatron_v2pe.data.checking.named_files import Lines, NamedFiles, blocks_of, named_files
from megatron_v2pe.data.image_transform import image_size
from megatron_v2pe.data.processes import Processes
from megatron_v2pe.data.sources import Dataset, read_entries, read_entry
from megatron_v2pe.data.video import frame_range
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.progress import progress_bar

FILES_AT_ONCE = 64
"""Headers a process reads before it reports."""


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
    """What was found of one data set. Of faults the first are kept, all are counted."""

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
    """Different ones."""
    num_missing: int = 0
    num_bad_lines: int = 0
    num_damaged: int | None = None
    """Files whose header cannot be read; None: not looked for."""
    missing: list[Fault] = field(default_factory=list)
    bad_lines: list[Fault] = field(default_factory=list)
    damaged: list[Fault] = field(default_factory=list)
    missing_folders: dict[str, int] = field(default_factory=dict)
    """Missing files by their folder."""

    @property
    def complete(self) -> bool:
        """Whether nothing was found to be wrong."""
        faults = self.num_missing + self.num_bad_lines + (self.num_damaged or 0)
        return self.problem is None and not self.annotation_missing and not faults


def check_data_list(path: str | Path, workers: int = 0, full: bool = False, shown: int = 5) -> list[DatasetCheck]:
    """Check everything a data list names; paths are relative to the current folder, as in training.

    Args:
        path: of the data list.
        workers: processes that parse lines and read headers; 0: this one alone.
        full: read the header of every image and video, too.
        shown: faults of a kind that are kept of each data set.

    Raises:
        ConfigError: the list itself cannot be read; what is wrong with an entry is told in its check.
        DataError: a worker process was killed.
    """
    opened = [_open(name, entry, path) for name, entry in read_entries(path).items()]
    tallies = [_Tally(check, shown) for check, _ in opened]
    datasets = [dataset for _, dataset in opened]
    folders = FolderNames()
    with Processes(workers, __name__) as processes:
        size = sum(os.path.getsize(dataset.annotation) for dataset in datasets if dataset is not None)
        with progress_bar(
            total=size, desc="read lines", unit="B", unit_scale=True, unit_divisor=1024, delay=1.0
        ) as bar:
            for lines, named in processes.map(named_files, _all_lines(datasets, tallies)):
                tallies[lines.owner].add(named, folders)
                bar.update(lines.size)
        if full:
            count = sum(check.files - check.num_missing for check, _ in opened)
            with progress_bar(total=count, desc="read headers", unit=" files", delay=1.0) as bar:
                for some, reasons in processes.map(_look, _some_files(tallies)):
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


def _all_lines(datasets: Sequence[Dataset | None], tallies: Sequence[_Tally]) -> Iterator[Lines]:
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
    """Some files of one data set whose headers are to be read."""

    owner: int
    files: tuple[tuple[str, bool], ...]
    """Path, and whether it is a video."""


def _some_files(tallies: Sequence[_Tally]) -> Iterator[_Files]:
    for owner, tally in enumerate(tallies):
        files = tally.found()
        while some := tuple(islice(files, FILES_AT_ONCE)):
            yield _Files(owner, some)


def _look(some: _Files) -> list[str | None]:
    """Read headers; return what is wrong with each file, None for nothing."""
    reasons = list[str | None]()
    for path, video in some.files:
        try:
            if not video:
                image_size(path)
            elif not path.endswith("/"):  # a folder of frames has been listed
                frame_range(path, None)
            reasons.append(None)
        except DataError as error:
            reasons.append(str(error))
    return reasons


class _Tally:
    """Adds up what is found of one data set."""

    def __init__(self, check: DatasetCheck, shown: int) -> None:
        self.check, self._shown = check, shown
        self._lines: dict[str, dict[str, int]] = {}
        """Of every file named so far: folder -> name -> first line."""
        self._missing: dict[str, set[str]] = {}
        self._videos: set[str] = set()

    def add(self, named: NamedFiles, folders: FolderNames) -> None:
        """Take note of the files the next lines name."""
        check = self.check
        check.images += named.mentions
        check.num_bad_lines += len(named.bad)
        self._keep(check.bad_lines, (Fault(check.annotation, line, reason) for line, reason in named.bad))
        self._videos.update(named.videos)
        gone: list[tuple[int, str, str]] = []
        for folder, names in named.folders.items():
            known = self._lines.setdefault(folder, {})
            new = names.keys() - known.keys()
            known.update((name, names[name]) for name in new)
            check.files += len(new)
            gone += [(names[name], folder, name) for name in new - folders.names(folder)]
        for line, folder, name in sorted(gone):
            self._missing.setdefault(folder, set()).add(name)
            check.missing_folders[folder] = check.missing_folders.get(folder, 0) + 1
            check.num_missing += 1
            if len(check.missing) < self._shown:
                path, reason = os.path.join(folder, name), folders.why_missing(folder)
                check.missing.append(Fault(path, line, "not a regular file" if os.path.exists(path) else reason))

    def found(self) -> Iterator[tuple[str, bool]]:
        """Yield the files that are there, folder by folder, and whether each is a video."""
        for folder, names in self._lines.items():
            for name in sorted(names.keys() - self._missing.get(folder, set())):
                path = os.path.join(folder, name)
                yield path, path in self._videos

    def add_damaged(self, some: _Files, reasons: Sequence[str | None]) -> None:
        """Take note of files whose headers were read."""
        check, damaged = self.check, 0
        for (path, _), reason in zip(some.files, reasons, strict=True):
            if reason is not None:
                folder, name = os.path.split(path)
                damaged += 1
                self._keep(check.damaged, [Fault(path, self._lines[folder][name], reason)])
        check.num_damaged = (check.num_damaged or 0) + damaged

    def _keep(self, kept: list[Fault], faults: Iterable[Fault]) -> None:
        kept.extend(islice(faults, self._shown - len(kept)))
