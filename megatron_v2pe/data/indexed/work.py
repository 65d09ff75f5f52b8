"""What the worker processes of a build do: find the files of samples, measure files, encode samples.

A piece of work is a function of its arguments and of files on disk, so that it does not matter which process does it.
`Pool` hands pieces to worker processes, or does them in this one, and gives their results in order.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.data.annotations import Dataset, LineBlock
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.image_operations import names_of
from megatron_v2pe.data.indexed.files import FileTable, Measured, measure_image, measure_video
from megatron_v2pe.data.indexed.layout import MEDIUM, SAMPLE, TOKEN_TYPE
from megatron_v2pe.data.processes import Processes
from megatron_v2pe.data.tokenize import image_starts
from megatron_v2pe.data.types import Clip, EncodedSample, Picture
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.media_fields import may_name_media
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import read_json_object

UNREADABLE = "unreadable.json"
"""Number of a file -> why it could not be read; there while a set is built."""


@dataclass(frozen=True)
class Encoded:
    """Some samples as records whose offsets count from their first."""

    samples: np.ndarray
    """`SAMPLE` [n]."""
    ids: np.ndarray
    """int32, one sample after the other."""
    ranges: np.ndarray
    """int32 [m, 2]."""
    media: np.ndarray
    """`MEDIUM` [k]."""
    skipped: tuple[tuple[int, str], ...]
    """Line and reason of those that cannot be used."""
    unread: dict[str, int]
    """Fields of lines that nobody reads and that are not usual either, with how many lines have each."""


@dataclass(frozen=True)
class Worker:
    """Everything a worker process has to know."""

    datasets: tuple[Dataset, ...]
    encoder: DocumentEncoder
    folder: Path
    """Folder of the set that is being built."""
    whole_images: bool

    def __reduce__(self) -> tuple[type[Worker], tuple[object, ...]]:
        """Leave out what can be worked out again, such as the offsets of all lines."""
        return Worker, (tuple(replace(entry) for entry in self.datasets), self.encoder, self.folder, self.whole_images)

    def find_files(self, dataset: int, block: LineBlock) -> list[tuple[str, bool]]:
        """Return the files samples refer to, (path, whether a video), in order."""
        entry, found = self.datasets[dataset], dict[tuple[str, bool], None]()
        for _, line in block.read(entry.annotation):
            if may_name_media(line):
                found.update(dict.fromkeys(entry.files_of(line)))
        return list(found)

    def measure(self, files: Sequence[tuple[str, bool]]) -> list[Measured | str]:
        """Measure files; of one that cannot be read, the reason."""
        results: list[Measured | str] = []
        for path, video in files:
            try:
                results.append((measure_video if video else measure_image)(path, self.whole_images))
            except DataError as error:
                results.append(str(error))
        return results

    def encode(self, dataset: int, block: LineBlock) -> Encoded:
        """Encode samples."""
        entry, builder = self.datasets[dataset], _Records(self.encoder.facts.tokens_per_tile)
        for number, line in block.read(entry.annotation):
            try:
                parsed = entry.parse(line, number)
                builder.unread.update(parsed.unknown)
                sample = self.encoder.encode_sample(parsed, entry, self._size_of)
                builder.add(sample, number, [self._find(item.path, isinstance(item, Clip))[0] for item in sample.media])
            except DataError as error:
                builder.skipped.append((number, str(error)))
        return builder.result()

    def _size_of(self, path: str) -> tuple[int, int]:
        _, width, height = self._find(path, False)
        return width, height

    @cached_property
    def _find(self) -> Callable[[str, bool], tuple[int, int, int]]:
        """Gives number, width and height of an image or video by its path; remembers those of a sample at least."""
        table = FileTable(self.folder)

        @lru_cache(maxsize=1 << 14)
        def find(path: str, video: bool) -> tuple[int, int, int]:
            try:
                number = table.find(path, video)
            except KeyError:
                raise DataError(
                    f"{printable(path)}: not among the images found at first: the annotation changed"
                ) from None
            _, size, width, height, *_ = table.rows[number].item()
            if size < 0:
                raise DataError(self._unreadable.get(str(number), f"{printable(path)}: could not be read"))
            return number, width, height

        return find

    @cached_property
    def _unreadable(self) -> dict[str, str]:
        return read_json_object(self.folder / UNREADABLE, DataError)


class _Records:
    """Gathers the records of samples."""

    def __init__(self, tokens_per_tile: int) -> None:
        self._tokens_per_tile = tokens_per_tile
        self._samples: list[tuple[int, ...]] = []
        self._ids: list[np.ndarray] = []
        self._ranges: list[np.ndarray] = []
        self._media: list[tuple[object, ...]] = []
        self._count = 0
        self.skipped: list[tuple[int, str]] = []
        self.unread = Counter[str]()

    def add(self, sample: EncodedSample, line: int, files: Sequence[int]) -> None:
        """Add a sample; `files` are the numbers of its media's files."""
        text = sample.text
        supervised = sum(end - start for start, end in text.supervised.tolist())
        self._samples.append(
            (sample.num_tokens, sample.num_tiles, supervised, len(text.ids), line, self._count, len(self._media))
        )
        self._ids.append(text.ids)
        self._ranges.append(text.supervised)
        self._count += len(text.supervised)
        if sample.media:
            tiles = [count for item in sample.media for count in item.tiles]
            starts = iter(image_starts(text, tiles, self._tokens_per_tile))
            for item, file in zip(sample.media, files, strict=True):
                places = [next(starts) for _ in item.tiles]
                self._media.append((file, places[0], *_medium(item)))

    def result(self) -> Encoded:
        """Return all that was added."""
        nothing = np.empty(0, dtype=TOKEN_TYPE)
        return Encoded(
            samples=np.array(self._samples, dtype=SAMPLE),
            ids=np.concatenate([nothing, *self._ids]),
            ranges=np.concatenate([nothing.reshape(0, 2), *self._ranges]),
            media=np.array(self._media, dtype=MEDIUM),
            skipped=tuple(self.skipped),
            unread=dict(self.unread),
        )


def _medium(item: Picture | Clip) -> tuple[object, ...]:
    """Return the fields of a `MEDIUM` record from `columns` on."""
    names = names_of(item.operations)
    flags = "pad_to_square" in names, "jpeg" in names
    if isinstance(item, Clip):
        return 0, 0, False, *flags, True, item.frames, item.first, item.last
    columns, rows = item.grid or (0, 0)
    return columns, rows, item.thumbnail, *flags, False, 0, 0, 0


class Pool:
    """Processes that know what is built, or this one; use as a context manager."""

    def __init__(self, worker: Worker, processes: int) -> None:
        """Start `processes`; with 0 everything happens in this one."""
        self._worker, self._here = worker, not processes
        self._processes = Processes(processes, __name__, _start, (worker,))

    def __enter__(self) -> Pool:
        """Return the pool."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes; work not begun is dropped."""
        self._processes.__exit__(*error)

    def results(self, method: str, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield `Worker.method(*task)` of each task, in order.

        Raises:
            DataError: a worker process was killed.
        """
        function = partial(_do, self._worker, method) if self._here else partial(_call, method)
        for _, result in self._processes.map(function, tasks):
            yield result


_worker: Worker | None = None


def _start(worker: Worker) -> None:
    """Set up a worker process; an interrupt from the keyboard is the parent's business."""
    global _worker
    _worker = worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _call(method: str, arguments: tuple[object, ...]) -> object:
    """Do a piece of work in a worker process."""
    assert _worker is not None
    return _do(_worker, method, arguments)


def _do(worker: Worker, method: str, arguments: tuple[object, ...]) -> object:
    """Do a piece of work."""
    return getattr(worker, method)(*arguments)
