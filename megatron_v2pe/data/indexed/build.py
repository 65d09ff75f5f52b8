"""Building an indexed data set: files measured, samples encoded, piece by piece, then the whole renamed into place.

Everything is written to `<out>.building`, in the order of the data list whatever the number of worker processes, with
a journal (see `streams`). A build that was stopped or killed goes on there; one with other settings or inputs refuses.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from megatron_v2pe.data.documents import DocumentEncoder
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.files import LOOKUP, FileTable, Measured, map_records
from megatron_v2pe.data.indexed.megatron_format import write_index
from megatron_v2pe.data.indexed.pool import Pool
from megatron_v2pe.data.indexed.report import write_report
from megatron_v2pe.data.indexed.settings import settings_of, template_digest
from megatron_v2pe.data.indexed.streams import JOURNAL, Streams, room
from megatron_v2pe.data.indexed.work import UNREADABLE, Encoded, Worker
from megatron_v2pe.data.sources import Dataset, LineBlock
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.logging import get_logger

PLAN = "plan.json"
_log = get_logger(__name__)
FILES_AT_ONCE, LINES_AT_ONCE, BYTES_AT_ONCE = 64, 128, 1 << 23
"""Size of a piece of work, in files, lines, bytes of lines: what a killed build may have to do again, per process."""
_LARGEST_COPY = (1 << 31) - 1
"""Bytes of the largest file that can be embedded: the index holds 32 bits. Larger ones are referenced."""


@dataclass(frozen=True)
class BuildOptions:
    """How an indexed data set is built."""

    out: str = ""
    """Folder to be made; must not exist."""
    workers: int = 0
    """Processes that read and encode; 0: this one alone. The result is the same."""
    images: Literal["reference", "embed"] = "reference"
    """`reference`: paths and checksums; `embed`: also the image files themselves, each once. Videos are referenced."""
    image_check: Literal["header", "full"] = "header"
    """`header`: size and format; `full`: decode every image, so that damaged pixels are found now."""
    max_skipped_samples: int | None = None
    """Samples that may be left out before the build stops; unset: any number, all listed in the report."""

    def validate(self) -> None:
        """Check values that no type can hold apart.

        Raises:
            ConfigError: naming the setting.
        """
        if not Path(self.out).name:
            raise ConfigError(f"--out {self.out}: name the folder to be made")
        if self.workers < 0:
            raise ConfigError(f"--workers is {self.workers}, expected 0 or more")
        if self.max_skipped_samples is not None and self.max_skipped_samples < 0:
            raise ConfigError(f"--max-skipped is {self.max_skipped_samples}, expected 0 or more")


def build(
    datasets: Sequence[Dataset], encoder: DocumentEncoder, options: BuildOptions, v2pe: dict[str, Any]
) -> layout.Manifest:
    """Build an indexed data set, or go on with one that was begun.

    Args:
        datasets: the data list.
        encoder: settings of tokens and tiles.
        options: of the build.
        v2pe: position settings to record.

    Raises:
        ConfigError: the folder is there already, or a begun build has other settings.
        DataError: no usable sample, too many unusable ones, files that change meanwhile, no room on the disk.
    """
    options.validate()
    out = Path(options.out)
    job = _Job(tuple(datasets), encoder, options, v2pe, out.with_name(out.name + ".building"))
    if out.exists():
        return _finished_before(out, job.plan)
    with room(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        with _locked(job.folder):
            if out.exists():
                return _finished_before(out, job.plan)
            _check_plan(job.folder, job.plan)
            manifest = job.finished() or job.run()
            job.put_in_place(out)
    return manifest


class _Job:
    """One build."""

    def __init__(
        self,
        datasets: tuple[Dataset, ...],
        encoder: DocumentEncoder,
        options: BuildOptions,
        v2pe: dict[str, Any],
        folder: Path,
    ) -> None:
        self.datasets, self.encoder, self.options, self.v2pe, self.folder = datasets, encoder, options, v2pe, folder
        self._stamps = [_stamp(dataset.annotation) for dataset in datasets]

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Return everything the result depends on, but for the images."""
        return {
            "version": layout.VERSION,
            "settings": settings_of(self.encoder.config, self.encoder.tokenizer, self.encoder.facts),
            "limits": {
                "max_seq_length": self.encoder.config.max_seq_length,
                "num_images_expected": self.encoder.config.num_images_expected,
            },
            "seed": self.encoder.seed,
            "tokenizer_sha256": self.encoder.tokenizer.fingerprint,
            "template_sha256": template_digest(self.encoder.config.template),
            "images": self.options.images,
            "image_check": self.options.image_check,
            "v2pe": self.v2pe,
            "datasets": [
                asdict(replace(dataset)) | {"sha256": _file_digest(dataset.annotation), "lines": len(dataset)}
                for dataset in self.datasets
            ],
        }

    def run(self) -> layout.Manifest:
        names = [layout.FILES, layout.PATHS, layout.SAMPLES, layout.RANGES, layout.MEDIA, f"{layout.TOKENS}.bin"]
        if self.options.images == "embed":
            names.append(f"{layout.IMAGES}.bin")
        streams = Streams(self.folder, names)
        worker = Worker(self.datasets, self.encoder, self.folder, self.options.image_check == "full")
        try:
            with Pool(worker, self.options.workers) as pool:
                self._measure(pool, streams)
                self._encode(pool, streams)
        except BaseException:
            streams.close()
            raise
        streams.close(sync=True)
        return self._finish(streams.notes, [*names, *self._write_indexes()])

    def _blocks(self) -> Iterator[tuple[int, LineBlock]]:
        for number, dataset in enumerate(self.datasets):
            for block in dataset.blocks(LINES_AT_ONCE, BYTES_AT_ONCE):
                yield number, block

    def _lines(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def _measure(self, pool: Pool, streams: Streams) -> None:
        """Read every file of every sample once, in the order in which they are first named."""
        self._forget_what_was_mended(pool, streams)
        done = sum(note["files"] for note in streams.notes if "files" in note)
        if any("samples" in note for note in streams.notes):
            return
        named: dict[tuple[str, bool], None] = {}
        with _progress(self._lines(), "lines", "looking for images") as bar:
            for (_, block), found in zip(self._blocks(), pool.results("find_files", self._blocks()), strict=True):
                named.update(dict.fromkeys(found))
                bar.update(len(block.rows))
        todo = list(named)[done:]
        chunks = [todo[first : first + FILES_AT_ONCE] for first in range(0, len(todo), FILES_AT_ONCE)]
        copies = _Copies(self.folder) if self.options.images == "embed" else None
        with _progress(len(named), "files", "reading images", done) as bar:
            for chunk, measured in zip(chunks, pool.results("measure", ((chunk,) for chunk in chunks)), strict=True):
                self._add_files(streams, chunk, measured, copies, done)
                done += len(chunk)
                bar.update(len(chunk))
        (self.folder / UNREADABLE).write_text(json.dumps(_unreadable(streams)), encoding="utf-8")
        FileTable(self.folder).write_lookup()

    def _forget_what_was_mended(self, pool: Pool, streams: Streams) -> None:
        """Start anew where an image that could not be read before can be read now."""
        unreadable = [int(number) for number in _unreadable(streams)]
        if not unreadable:
            return
        table = FileTable(self.folder)
        files = [(table.path(number), bool(table.rows["video"][number])) for number in unreadable]
        chunks = [files[first : first + FILES_AT_ONCE] for first in range(0, len(files), FILES_AT_ONCE)]
        for chunk, measured in zip(chunks, pool.results("measure", ((chunk,) for chunk in chunks)), strict=True):
            for (path, _), found in zip(chunk, measured, strict=True):
                if not isinstance(found, str):
                    _log.info("%s can be read now, which it could not before: starting anew", path)
                    streams.reset()
                    return

    def _add_files(
        self,
        streams: Streams,
        files: Sequence[tuple[str, bool]],
        measured: Sequence[Measured | str],
        copies: _Copies | None,
        first: int,
    ) -> None:
        rows = np.zeros(len(files), dtype=layout.FILE)
        rows["copy"], paths, unreadable = -1, [path.encode() for path, _ in files], {}
        begin = streams.size(layout.PATHS)
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
                    streams.copy(f"{layout.IMAGES}.bin", path, found.sha256)
        streams.append(layout.PATHS, b"".join(paths))
        streams.append(layout.FILES, rows.tobytes())
        streams.commit({"files": len(files), "unreadable": unreadable})

    def _encode(self, pool: Pool, streams: Streams) -> None:
        """Encode all samples; blocks of lines done before are not read again."""
        notes = [note for note in streams.notes if "samples" in note]
        blocks = list(self._blocks())
        skipped = [(note["dataset"], *lost) for note in notes for lost in note["skipped"]]
        self._check_skipped(skipped)
        todo, done = blocks[len(notes) :], sum(len(block.rows) for _, block in blocks[: len(notes)])
        with _progress(self._lines(), "samples", "encoding", done) as bar:
            for (number, block), part in zip(todo, pool.results("encode", todo), strict=True):
                skipped += [(number, *lost) for lost in part.skipped]
                self._check_skipped(skipped)
                self._add_samples(streams, number, part)
                bar.update(len(block.rows))

    def _add_samples(self, streams: Streams, dataset: int, part: Encoded) -> None:
        part.samples["first_range"] += streams.size(layout.RANGES) // 8
        part.samples["first_medium"] += streams.size(layout.MEDIA) // layout.MEDIUM.itemsize
        streams.append(f"{layout.TOKENS}.bin", part.ids.tobytes())
        streams.append(layout.RANGES, part.ranges.tobytes())
        streams.append(layout.MEDIA, part.media.tobytes())
        streams.append(layout.SAMPLES, part.samples.tobytes())
        streams.commit({"samples": len(part.samples), "dataset": dataset, "skipped": part.skipped})

    def _check_skipped(self, skipped: Sequence[tuple[int, int, str]]) -> None:
        """Stop where too many samples cannot be used; of each data set, line and reason."""
        limit = self.options.max_skipped_samples
        if limit is not None and len(skipped) > limit:
            dataset, line, reason = skipped[limit]
            raise DataError(
                f"{self.datasets[dataset].annotation}:{line}: {reason}\n{len(skipped)} samples cannot be used, "
                f"--max-skipped allows {limit}; mend them or allow more, {self.folder} is kept"
            )

    def _write_indexes(self) -> list[str]:
        samples = map_records(self.folder / layout.SAMPLES, layout.SAMPLE)
        write_index(self.folder / f"{layout.TOKENS}.idx", samples["ids"], layout.TOKEN_TYPE)
        names = [f"{layout.TOKENS}.idx"]
        if self.options.images == "embed":
            files = map_records(self.folder / layout.FILES, layout.FILE)
            embedded = files[files["copy"] >= 0]
            _, first = np.unique(embedded["copy"], return_index=True)
            write_index(self.folder / f"{layout.IMAGES}.idx", embedded["size"][first], np.dtype("u1"))
            names.append(f"{layout.IMAGES}.idx")
        return names

    def _finish(self, notes: Sequence[dict[str, Any]], names: Sequence[str]) -> layout.Manifest:
        """Write report and manifest; nothing that only a build needs stays."""
        for dataset, stamp in zip(self.datasets, self._stamps, strict=True):
            if _stamp(dataset.annotation) != stamp:
                raise DataError(f"{dataset.annotation} changed while the data set was built; delete {self.folder}")
        sets, skipped = self._sets(notes)
        samples = map_records(self.folder / layout.SAMPLES, layout.SAMPLE)
        if not len(samples):
            reasons = "; ".join(f"line {line}: {reason}" for entry in skipped for line, reason in entry[:2])
            raise DataError(
                f"none of the {self._lines()} samples can be used ({reasons}); mend them and run the same command again"
            )
        files = map_records(self.folder / layout.FILES, layout.FILE)
        reports = write_report(self.folder, sets, samples, files, skipped)
        counts = {
            "samples": len(samples),
            "tokens": int(samples["tokens"].sum(dtype=np.int64)),
            "tiles": int(samples["tiles"].sum(dtype=np.int64)),
            "supervised": int(samples["supervised"].sum(dtype=np.int64)),
            "longest": int(samples["tokens"].max()),
            "most_tiles": int(samples["tiles"].max()),
            "files": len(files),
        }
        manifest = layout.Manifest(
            settings=self.plan["settings"],
            limits=self.plan["limits"],
            tokenizer_sha256=self.plan["tokenizer_sha256"],
            template_sha256=self.plan["template_sha256"],
            embedded=self.options.images == "embed",
            image_check=self.options.image_check,
            v2pe=self.v2pe,
            plan_sha256=_digest(self.plan),
            lengths_sha256=_lengths_digest(sets, samples),
            datasets=sets,
            counts=counts,
            sizes={name: (self.folder / name).stat().st_size for name in sorted([*names, *reports])},
        )
        for path in self.folder.iterdir():
            _sync(path)
        manifest.write(self.folder)
        return manifest

    def finished(self) -> layout.Manifest | None:
        """Return the manifest of a build that was ended between its last file and its place."""
        return layout.Manifest.read(self.folder) if (self.folder / layout.MANIFEST).is_file() else None

    def put_in_place(self, out: Path) -> None:
        """Remove what only a build needs, and give the folder its name; can be done again after a kill."""
        for name in (UNREADABLE, LOOKUP, PLAN, JOURNAL):
            (self.folder / name).unlink(missing_ok=True)
        _sync(self.folder)
        os.rename(self.folder, out)
        _sync(out.parent)

    def _sets(
        self, notes: Sequence[dict[str, Any]]
    ) -> tuple[tuple[layout.IndexedSet, ...], list[list[tuple[int, str]]]]:
        """Return the data sets as built, and of each the lines that were left out."""
        sets: list[layout.IndexedSet] = []
        skipped: list[list[tuple[int, str]]] = []
        first = 0
        for number, dataset in enumerate(self.datasets):
            mine = [note for note in notes if note.get("dataset") == number]
            samples = sum(note["samples"] for note in mine)
            skipped.append([(line, reason) for note in mine for line, reason in note["skipped"]])
            sets.append(
                layout.IndexedSet(
                    name=dataset.name,
                    annotation=dataset.annotation,
                    annotation_sha256=self.plan["datasets"][number]["sha256"],
                    lines=len(dataset),
                    first=first,
                    samples=samples,
                    repeat_time=dataset.repeat_time,
                    weight=dataset.weight,
                )
            )
            first += samples
        return tuple(sets), skipped


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


def _finished_before(out: Path, plan: dict[str, Any]) -> layout.Manifest:
    if not (out / layout.MANIFEST).is_file():
        raise ConfigError(f"--out {out} is there already, and no indexed data set; choose another folder, or remove it")
    manifest = layout.Manifest.read(out)
    if manifest.plan_sha256 != _digest(plan):
        raise ConfigError(
            f"--out {out} holds a data set built with other settings or from other annotations; "
            "choose another folder, or remove it"
        )
    return manifest


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN
    if not path.is_file():
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(plan, indent=1, ensure_ascii=False), encoding="utf-8")
        os.rename(temporary, path)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before == json.loads(json.dumps(plan)):
        return
    names = [name for name in plan if before.get(name) != json.loads(json.dumps(plan[name]))]
    raise ConfigError(
        f"{folder} holds a build begun with other {', '.join(names)}; finish it with those, or delete the folder"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists():  # renamed into place since it was opened
            raise BlockingIOError
        yield
    except BlockingIOError:
        raise ConfigError(f"{folder}: another process is building there") from None
    finally:
        os.close(descriptor)


def _progress(total: int, unit: str, what: str, done: int = 0) -> tqdm:  # type: ignore[type-arg]
    return tqdm(total=total, initial=done, desc=what, unit=f" {unit}", smoothing=0.05, delay=0.5)


def _stamp(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _unreadable(streams: Streams) -> dict[str, str]:
    """Number of each file that could not be read -> why."""
    return {number: text for note in streams.notes for number, text in note.get("unreadable", {}).items()}


def _lengths_digest(sets: Sequence[layout.IndexedSet], samples: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps([[entry.name, entry.first, entry.samples] for entry in sets]).encode())
    for field in ("tokens", "tiles"):
        digest.update(np.ascontiguousarray(samples[field]).tobytes())
    return digest.hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
