"""Building an indexed data set: files measured, samples encoded, piece by piece, then the whole renamed into place.

Everything is written to `<out>.building`, in the order of the data list whatever the number of worker processes, with
a journal (see `streams`). A build that was stopped or killed goes on there; one with other settings or inputs refuses.
This file decides which; `pieces` does the long part, `finish` the last steps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from megatron_v2pe.base.run_lock import LOCK, lock_folder
from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.image_operations import AS_PUBLISHED
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.files import LOOKUP
from megatron_v2pe.data.indexed.finish import plan_digest, put_in_place, write_indexes, write_manifest
from megatron_v2pe.data.indexed.pieces import Pieces
from megatron_v2pe.data.indexed.samples import settings_of, template_digest
from megatron_v2pe.data.indexed.streams import JOURNAL, Streams, room
from megatron_v2pe.data.indexed.verify import verify
from megatron_v2pe.data.indexed.work import UNREADABLE, Pool, Worker
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.seal import CHECK, seal, unseal
from megatron_v2pe.foreign.text import read_json_object

PLAN, _FORMAT = "plan.json", "plan of a megatron-v2pe indexed data set"
_OPENING = tuple(asdict(AS_PUBLISHED))


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
    """`header`: size and format; `full`: read all pixels and frames: what training would refuse is found now."""
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
        ConfigError: the folder is there already, a begun build has other settings, or another process is building.
        DataError: no usable sample, too many unusable ones, files that change meanwhile, no room on the disk, or a
            begun build is damaged where that cannot be done again.
    """
    options.validate()
    out = Path(options.out)
    job = _Job(tuple(datasets), encoder, options, v2pe, out.with_name(out.name + ".building"))
    if out.exists():
        return _finished_before(out, job.plan)
    with room(job.folder):
        with lock_folder(job.folder, "a build"):
            if out.exists():
                return _finished_before(out, job.plan)
            _check_plan(job.folder, job.plan)
            manifest = job.finished() or job.run()
            put_in_place(job.folder, out, (UNREADABLE, LOOKUP, JOURNAL, PLAN, LOCK))
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
            "template_sha256": template_digest(self.encoder.config.template_name),
            "images": self.options.images,
            "image_check": self.options.image_check,
            "v2pe": self.v2pe,
            "datasets": [
                _settings(dataset) | {"sha256": _file_digest(dataset.annotation), "lines": len(dataset)}
                for dataset in self.datasets
            ],
        }

    def run(self) -> layout.Manifest:
        """Measure, encode and finish."""
        embed = self.options.images == "embed"
        names = [layout.FILES, layout.PATHS, layout.SAMPLES, layout.RANGES, layout.MEDIA, f"{layout.TOKENS}.bin"]
        if embed:
            names.append(f"{layout.IMAGES}.bin")
        large = [f"{layout.IMAGES}.bin"]
        streams = Streams(self.folder, names, seed=int(plan_digest(self.plan)[:16], 16), large=large)
        worker = Worker(self.datasets, self.encoder, self.folder, self.options.image_check == "full")
        try:
            with Pool(worker, self.options.workers) as pool:
                pieces = Pieces(self.folder, self.datasets, pool, streams, embed, self.options.max_skipped_samples)
                pieces.measure()
                pieces.encode()
        except BaseException:
            streams.close()
            raise
        streams.close(sync=True)
        names += write_indexes(self.folder, embed)
        self._check_unchanged()
        return write_manifest(self.folder, self.datasets, self.plan, streams, names)

    def finished(self) -> layout.Manifest | None:
        """Return the manifest of a build that was ended between its last file and its place.

        Raises:
            ConfigError: it was built with other settings.
            DataError: it is damaged.
        """
        if not (self.folder / layout.MANIFEST).exists():
            return None
        try:
            manifest = verify(self.folder)
        except DataError as error:
            raise DataError(f"{error}; delete {printable(self.folder)} to start anew") from error
        if manifest.plan_sha256 != plan_digest(self.plan):
            raise ConfigError(
                f"{printable(self.folder)} holds a build of other settings or annotations; delete the folder"
            )
        manifest.write(self.folder)
        return manifest

    def _check_unchanged(self) -> None:
        for dataset, stamp in zip(self.datasets, self._stamps, strict=True):
            if _stamp(dataset.annotation) != stamp:
                raise DataError(
                    f"{printable(dataset.annotation)} changed while the data set was built; delete "
                    f"{printable(self.folder)}"
                )


def _settings(dataset: Dataset) -> dict[str, Any]:
    """Return an entry of the data list; how pictures are opened only where it is not usual, as older builds have it."""
    content = asdict(replace(dataset))
    if not dataset.image_operations:
        del content["image_operations"]
    return content if dataset.opening != AS_PUBLISHED else {k: v for k, v in content.items() if k not in _OPENING}


def _finished_before(out: Path, plan: dict[str, Any]) -> layout.Manifest:
    if not (out / layout.MANIFEST).is_file():
        raise ConfigError(
            f"--out {printable(out)} is there already, and no indexed data set; choose another folder, or remove it"
        )
    manifest = layout.Manifest.read(out)
    if manifest.plan_sha256 != plan_digest({**plan, "version": manifest.version}):
        raise ConfigError(
            f"--out {printable(out)} holds a data set built with other settings or from other annotations; "
            "choose another folder, or remove it"
        )
    return manifest


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    path, anew = folder / PLAN, f"delete {printable(folder)} to start anew"
    plan = json.loads(json.dumps(plan))
    if not os.path.lexists(path):
        if (folder / JOURNAL).exists():
            raise DataError(f"{printable(path)}: is missing beside a {JOURNAL}: what was begun is not known; {anew}")
        write_text(path, json.dumps(seal({"format": _FORMAT, **plan}), indent=1, ensure_ascii=False))
        return
    try:
        content = read_json_object(path, DataError, unique=True)
        before = unseal(content, printable(path), DataError)
    except DataError as error:
        raise DataError(f"{error}; {anew}") from error
    if CHECK not in content:
        raise ConfigError(f"{printable(path)}: a build begun by another version of this program; {anew}")
    if before.pop("format", None) != _FORMAT:
        raise DataError(f"{printable(path)}: not the plan of a build; {anew}")
    if before == plan:
        return
    names = [name for name in plan if before.get(name) != plan[name]]
    raise ConfigError(
        f"{printable(folder)} holds a build begun with other {', '.join(names)}; finish it with those, or delete the "
        "folder"
    )


def _stamp(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _file_digest(path: str) -> str:
    digest = hashlib.sha256()
    check_regular(path, DataError)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
