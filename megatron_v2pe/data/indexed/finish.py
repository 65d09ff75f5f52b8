"""The last steps of a build: indexes, report and manifest of what was written, then the folder's own name."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.base import whole_files
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.image_operations import AS_PUBLISHED
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.checksums import CHECKSUMS, write_checksums
from megatron_v2pe.data.indexed.files import map_records
from megatron_v2pe.data.indexed.megatron_format import write_index
from megatron_v2pe.data.indexed.report import write_report
from megatron_v2pe.data.indexed.streams import Streams
from megatron_v2pe.errors import DataError


def write_indexes(folder: Path, embed: bool) -> list[str]:
    """Write the index of tokens and, where images are embedded, theirs; return their names."""
    samples = map_records(folder / layout.SAMPLES, layout.SAMPLE)
    write_index(folder / f"{layout.TOKENS}.idx", samples["ids"], layout.TOKEN_TYPE)
    names = [f"{layout.TOKENS}.idx"]
    if embed:
        files = map_records(folder / layout.FILES, layout.FILE)
        embedded = files[files["copy"] >= 0]
        _, first = np.unique(embedded["copy"], return_index=True)
        write_index(folder / f"{layout.IMAGES}.idx", embedded["size"][first], np.dtype("u1"))
        names.append(f"{layout.IMAGES}.idx")
    return names


def write_manifest(
    folder: Path,
    datasets: Sequence[Dataset],
    plan: dict[str, Any],
    streams: Streams,
    names: Sequence[str],
) -> layout.Manifest:
    """Write reports and, once all is on the disk, the manifest.

    Args:
        folder: of the build.
        datasets: the data list.
        plan: everything the result depends on, but for the images.
        streams: what was written piece by piece, closed; their notes and checksums are taken.
        names: of the files written so far.

    Raises:
        DataError: no usable sample.
    """
    sets, skipped = _sets(datasets, plan, streams.notes)
    samples = map_records(folder / layout.SAMPLES, layout.SAMPLE)
    if not len(samples):
        lines = sum(len(dataset) for dataset in datasets)
        reasons = "; ".join(f"line {line}: {reason}" for entry in skipped for line, reason in entry[:2])
        raise DataError(
            f"none of the {lines} samples can be used ({reasons}); mend them and run the same command again"
        )
    files = map_records(folder / layout.FILES, layout.FILE)
    unread = [_unread(streams.notes, number) for number in range(len(sets))]
    names = [*names, *write_report(folder, sets, samples, files, skipped, unread)]
    summed = [name for name in names if layout.has_checksums(name)]
    known = {name: streams.sums(name) for name in summed if name in streams}
    digest = write_checksums(folder, summed, known)
    names.append(CHECKSUMS)
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
        settings=plan["settings"],
        limits=plan["limits"],
        tokenizer_sha256=plan["tokenizer_sha256"],
        template_sha256=plan["template_sha256"],
        embedded=plan["images"] == "embed",
        image_check=plan["image_check"],
        v2pe=plan["v2pe"],
        plan_sha256=plan_digest(plan),
        lengths_sha256=_lengths_digest(sets, samples),
        datasets=sets,
        counts=counts,
        sizes={name: (folder / name).stat().st_size for name in sorted(names)},
        checksums_xxh3=digest,
    )
    for name in names:  # not of the lock: to open it anew would give it up
        whole_files.wait_for_disk(folder / name)
    manifest.write(folder)
    return manifest


def put_in_place(folder: Path, out: Path, leftovers: Sequence[str]) -> None:
    """Remove what only a build needs, and give the folder its name; can be done again after a kill."""
    for name in leftovers:
        (folder / name).unlink(missing_ok=True)
    whole_files.wait_for_disk(folder)
    whole_files.put_in_place(folder, out)
    whole_files.wait_for_disk(out.parent)


def plan_digest(plan: dict[str, Any]) -> str:
    """Return a fingerprint of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _unread(notes: Sequence[dict[str, Any]], dataset: int) -> dict[str, int]:
    """Return the fields of a data set's lines that nobody reads, with how many lines have each."""
    counts = Counter[str]()
    for note in notes:
        if note.get("dataset") == dataset:
            counts.update(note.get("unread", {}))
    return dict(counts)


def _sets(
    datasets: Sequence[Dataset], plan: dict[str, Any], notes: Sequence[dict[str, Any]]
) -> tuple[tuple[layout.IndexedSet, ...], list[list[tuple[int, str]]]]:
    """Return the data sets as built, and of each the lines that were left out."""
    sets: list[layout.IndexedSet] = []
    skipped: list[list[tuple[int, str]]] = []
    first = 0
    for number, dataset in enumerate(datasets):
        mine = [note for note in notes if note.get("dataset") == number]
        samples = sum(note["samples"] for note in mine)
        skipped.append([(line, reason) for note in mine for line, reason in note["skipped"]])
        sets.append(
            layout.IndexedSet(
                name=dataset.name,
                annotation=dataset.annotation,
                annotation_sha256=plan["datasets"][number]["sha256"],
                lines=len(dataset),
                first=first,
                samples=samples,
                repeat_time=dataset.repeat_time,
                weight=dataset.weight,
                opening=dataset.opening,
                image_operations=dataset.image_operations,
            )
        )
        first += samples
    return tuple(sets), skipped


def _lengths_digest(sets: Sequence[layout.IndexedSet], samples: np.ndarray) -> str:
    """Fingerprint of what the packs of a set are; the way pictures are opened is part of it where it is not usual."""
    digest = hashlib.sha256(json.dumps([[entry.name, entry.first, entry.samples] for entry in sets]).encode())
    if any(entry.opening != AS_PUBLISHED for entry in sets):
        digest.update(json.dumps([asdict(entry.opening) for entry in sets]).encode())
    if any(entry.image_operations for entry in sets):
        digest.update(json.dumps([entry.image_operations for entry in sets]).encode())
    for field in ("tokens", "tiles"):
        digest.update(np.ascontiguousarray(samples[field]).tobytes())
    return digest.hexdigest()
