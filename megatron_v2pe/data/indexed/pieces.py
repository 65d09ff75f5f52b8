"""The long part of a build, piece by piece: every file measured, then every sample encoded, noted in the journal.

A build that was stopped goes on behind the last piece noted.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.progress import Progress, progress_bar
from megatron_v2pe.data.annotations import Dataset, LineBlock
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.files import FileTable, Measured, map_records
from megatron_v2pe.data.indexed.streams import Streams
from megatron_v2pe.data.indexed.work import UNREADABLE, Encoded, Pool
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable

_log = get_logger(__name__)
FILES_AT_ONCE, LINES_AT_ONCE, BYTES_AT_ONCE = 64, 128, 1 << 23
"""Size of a piece of work, in files, lines, bytes of lines: what a killed build may have to do again, per process."""
_LARGEST_COPY = (1 << 31) - 1
"""Bytes of the largest file that can be embedded: the index holds 32 bits. Larger ones are referenced."""
_Files: TypeAlias = Sequence[tuple[str, bool]]
"""Paths, and whether each is of a video."""


class Pieces:
    """The work of one build, handed to a pool and written to streams."""

    def __init__(
        self,
        folder: Path,
        datasets: Sequence[Dataset],
        pool: Pool,
        streams: Streams,
        embed: bool,
        max_skipped_samples: int | None,
    ) -> None:
        """Prepare.

        Args:
            folder: where the streams are.
            datasets: the data list.
            pool: processes that do the work.
            streams: what is written; its notes tell what has been done.
            embed: whether image files are copied.
            max_skipped_samples: samples that may be left out; None: any number.
        """
        self._folder, self._datasets, self._pool, self._streams = folder, datasets, pool, streams
        self._embed, self._max_skipped_samples = embed, max_skipped_samples
        self._lines = sum(len(dataset) for dataset in datasets)

    def measure(self) -> None:
        """Read every file of every sample once, in the order in which they are first named.

        Raises:
            DataError: a file changes meanwhile, or there is no room on the disk.
        """
        self._forget_what_was_mended()
        if not any("samples" in note for note in self._streams.notes):
            self._measure_rest(sum(note["files"] for note in self._streams.notes))
        # Made anew whenever a build goes on: what is worked out again needs no checksum.
        (self._folder / UNREADABLE).write_text(json.dumps(_unreadable(self._streams)), encoding="utf-8")
        FileTable(self._folder).write_lookup()

    def _measure_rest(self, done: int) -> None:
        """Measure all files but the first `done`, which are measured already."""
        named: dict[tuple[str, bool], None] = {}
        with _progress(self._lines, "lines", "looking for images") as bar:
            for (_, block), found in zip(self._blocks(), self._pool.results("find_files", self._blocks()), strict=True):
                named.update(dict.fromkeys(found))
                bar.update(len(block.rows))
        if self._embed:
            check_room(self._folder, (path for path, video in list(named)[done:] if not video))
        copies = _Copies(self._folder) if self._embed else None
        with _progress(len(named), "files", "reading images", done) as bar:
            for chunk, measured in self._measured(list(named)[done:]):
                self._add_files(chunk, measured, copies, done)
                done += len(chunk)
                bar.update(len(chunk))

    def encode(self) -> None:
        """Encode all samples; blocks of lines done before are not read again.

        Raises:
            DataError: too many samples cannot be used, or there is no room on the disk.
        """
        notes = [note for note in self._streams.notes if "samples" in note]
        blocks = list(self._blocks())
        skipped = [(note["dataset"], *lost) for note in notes for lost in note["skipped"]]
        self._check_skipped(skipped)
        todo, done = blocks[len(notes) :], sum(len(block.rows) for _, block in blocks[: len(notes)])
        with _progress(self._lines, "samples", "encoding", done) as bar:
            for (number, block), part in zip(todo, self._pool.results("encode", todo), strict=True):
                skipped += [(number, *lost) for lost in part.skipped]
                self._check_skipped(skipped)
                self._add_samples(number, part)
                bar.update(len(block.rows))

    def _blocks(self) -> Iterator[tuple[int, LineBlock]]:
        for number, dataset in enumerate(self._datasets):
            for block in dataset.blocks(LINES_AT_ONCE, BYTES_AT_ONCE):
                yield number, block

    def _measured(self, files: _Files) -> Iterator[tuple[_Files, Sequence[Measured | str]]]:
        """Yield pieces of the files and what was found of each file, in order."""
        chunks = [files[first : first + FILES_AT_ONCE] for first in range(0, len(files), FILES_AT_ONCE)]
        yield from zip(chunks, self._pool.results("measure", ((chunk,) for chunk in chunks)), strict=True)

    def _forget_what_was_mended(self) -> None:
        """Start anew where an image that could not be read before can be read now."""
        unreadable = [int(number) for number in _unreadable(self._streams)]
        if not unreadable:
            return
        table = FileTable(self._folder)
        files = [(table.path(number), bool(table.rows["video"][number])) for number in unreadable]
        for chunk, measured in self._measured(files):
            for (path, _), found in zip(chunk, measured, strict=True):
                if not isinstance(found, str):
                    _log.info("%s can be read now, which it could not before: starting anew", path)
                    self._streams.reset()
                    return

    def _add_files(self, files: _Files, measured: Sequence[Measured | str], copies: _Copies | None, first: int) -> None:
        rows = np.zeros(len(files), dtype=layout.FILE)
        rows["copy"], paths, unreadable = -1, [path.encode() for path, _ in files], {}
        begin = self._streams.size(layout.PATHS)
        rows["path"] = begin + np.cumsum([0, *(len(path) for path in paths[:-1])])
        for row, (path, video), found, number in zip(
            rows, files, measured, range(first, first + len(files)), strict=True
        ):
            row["video"] = video
            if isinstance(found, str):
                row["size"], unreadable[str(number)] = -1, found
                continue
            row["size"], row["width"], row["height"] = found.size, found.width, found.height
            row["sha256"] = np.frombuffer(found.sha256, dtype="u1")
            if copies is not None and not video and found.size <= _LARGEST_COPY:
                row["copy"], new = copies.place(found.sha256)
                if new:
                    self._streams.copy(f"{layout.IMAGES}.bin", path, found.sha256)
        self._streams.append(layout.PATHS, b"".join(paths))
        self._streams.append(layout.FILES, rows.tobytes())
        self._streams.commit({"files": len(files), "unreadable": unreadable})

    def _add_samples(self, dataset: int, part: Encoded) -> None:
        part.samples["first_range"] += self._streams.size(layout.RANGES) // 8
        part.samples["first_medium"] += self._streams.size(layout.MEDIA) // layout.MEDIUM.itemsize
        self._streams.append(f"{layout.TOKENS}.bin", part.ids.tobytes())
        self._streams.append(layout.RANGES, part.ranges.tobytes())
        self._streams.append(layout.MEDIA, part.media.tobytes())
        self._streams.append(layout.SAMPLES, part.samples.tobytes())
        unread = {"unread": part.unread} if part.unread else {}
        self._streams.commit({"samples": len(part.samples), "dataset": dataset, "skipped": part.skipped, **unread})

    def _check_skipped(self, skipped: Sequence[tuple[int, int, str]]) -> None:
        """Stop where too many samples cannot be used; of each data set, line and reason."""
        limit = self._max_skipped_samples
        if limit is not None and len(skipped) > limit:
            dataset, line, reason = skipped[limit]
            raise DataError(
                f"{printable(self._datasets[dataset].annotation)}:{line}: {reason}\n{len(skipped)} samples cannot be "
                f"used, --max-skipped allows {limit}; mend them or allow more, {printable(self._folder)} is kept"
            )


class _Copies:
    """Which content is in `images.bin` already: files of the same bytes are embedded once."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[bytes, int] = {}
        for row in map_records(folder / layout.FILES, layout.FILE):
            if row["copy"] >= 0:
                self._places.setdefault(row["sha256"].tobytes(), int(row["copy"]))

    def place(self, sha256: bytes) -> tuple[int, bool]:
        """Return the number of the copy with this content, and whether it is new."""
        new = sha256 not in self._places
        return self._places.setdefault(sha256, len(self._places)), new


def check_room(folder: Path, images: Iterable[str]) -> None:
    """Look whether image files fit onto the disk before hours are spent on copying them.

    Files of the same bytes are copied once, which only reading tells; files of different sizes are different. What
    the sizes that occur take is needed for certain; where all files together take more than is free, a line in the log
    says so.

    Raises:
        DataError: there is no room for certain; names both numbers.
    """
    sizes, total = set[int](), 0
    for path in images:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue  # named when it is read
        if stat.S_ISREG(found.st_mode):
            sizes.add(found.st_size)
            total += found.st_size
    free, least = shutil.disk_usage(folder).free, sum(sizes)
    if least > free:
        raise DataError(
            f"{printable(folder)}: {free} bytes are free, the images to be embedded take {least} or more; make room "
            "and run the same command again, or keep --images reference"
        )
    if total > free:
        _log.warning(
            "%s: %d bytes are free, the images to be embedded take up to %d, less where files are equal",
            *(printable(folder), free, total),
        )


def _progress(total: int, unit: str, what: str, done: int = 0) -> Progress:
    return progress_bar(total=total, initial=done, desc=what, unit=unit, smoothing=0.05, delay=0.5)


def _unreadable(streams: Streams) -> dict[str, str]:
    """Number of each file that could not be read -> why."""
    return {number: text for note in streams.notes for number, text in note.get("unreadable", {}).items()}
