"""Reading an indexed data set: any sample by its number, all lengths at once; nothing is loaded before it is needed."""

from __future__ import annotations

import hashlib
import os
import struct
from bisect import bisect_right
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.encode import ModelFacts
from megatron_v2pe.data.image_operations import Opening, Operations, PadToSquare, operations_of, read_operations
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.checksums import REMEDY
from megatron_v2pe.data.indexed.files import FileStore
from megatron_v2pe.data.indexed.megatron_format import Sequences
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Clip, CompactText, EncodedSample, Picture, SampleId
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.printable import printable

_log = get_logger(__name__)
# `SAMPLE` and `MEDIUM` of `layout`: several times as fast as reading field by field.
_SAMPLE, _NEXT, _MEDIUM = struct.Struct("<iiiiiqq"), struct.Struct("<qq"), struct.Struct("<qqhh????iii")
_RANGE_BYTES, _NEXT_AT = 8, layout.SAMPLE.itemsize + 20
assert _SAMPLE.size == layout.SAMPLE.itemsize and _MEDIUM.size == layout.MEDIUM.itemsize


SETTINGS = (
    "template",
    "pad2square",
    "dynamic_image_size",
    "dynamic_max_patch",
    "use_thumbnail",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "min_num_frame",
    "max_num_frame",
)
"""Settings of the data pipeline on which the tokens and tiles of a set depend: a build records them, a run compares."""


def settings_of(config: DataConfig, tokenizer: Tokenizer, facts: ModelFacts) -> dict[str, Any]:
    """Return all settings that must be equal, by name."""
    settings = {name: getattr(config, name) for name in SETTINGS} | {"template": config.template_name}
    return settings | asdict(facts) | {"image_token": tokenizer.img_context_id}


def template_digest(name: str) -> str:
    """Return a fingerprint of a conversation template."""
    return hashlib.sha256(repr(get_template(name)).encode()).hexdigest()


class IndexedSamples:
    """The samples of a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Open a finished set.

        Raises:
            DataError: not one, of another version, or a file is damaged.
        """
        self.folder = Path(folder)
        self.manifest = layout.Manifest.read(self.folder)
        files = layout.SetFiles(self.folder, self.manifest)
        self._samples, self._ranges = files.open(layout.SAMPLES), files.open(layout.RANGES)
        self._media, self._tokens = files.open(layout.MEDIA), Sequences(self.folder / layout.TOKENS, files)
        self._rows = self._samples.records(layout.SAMPLE)
        self.files = FileStore(self.folder, self.manifest.embedded, files)
        self._first = [entry.first for entry in self.manifest.datasets]
        self._image_token = self.manifest.settings["image_token"]
        per_tile = self.manifest.settings.get("tokens_per_tile")
        self._per_tile = per_tile if isinstance(per_tile, int) else None
        counts = {len(self._rows), len(self._tokens), self.manifest.counts["samples"]}
        if len(counts) > 1:
            raise DataError(
                f"{printable(self.folder)}: {sorted(counts)} samples by its files: parts of different builds"
            )

    def __reduce__(self) -> tuple[type[IndexedSamples], tuple[Path]]:
        """Open again in another process."""
        return IndexedSamples, (self.folder,)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of every sample, int32 [n], a view of the file, which is checked as a whole.

        Raises:
            DataError: it is damaged.
        """
        self._samples.check_all()
        return self._rows["tokens"]

    @property
    def num_tiles(self) -> np.ndarray:
        """Tiles of every sample, int32 [n]; checked as `num_tokens`."""
        self._samples.check_all()
        return self._rows["tiles"]

    @property
    def lines(self) -> np.ndarray:
        """Number of every sample's line in its annotation file, from 1, int32 [n]; checked as `num_tokens`."""
        self._samples.check_all()
        return self._rows["line"]

    @property
    def num_ids(self) -> np.ndarray:
        """Tokens of every sample with each image as one, int32 [n]; checked as `num_tokens`."""
        self._samples.check_all()
        return self._rows["ids"]

    @property
    def supervised(self) -> np.ndarray:
        """Tokens of every sample that something is learned from, int32 [n]; checked as `num_tokens`."""
        self._samples.check_all()
        return self._rows["supervised"]

    def source(self, number: int) -> SampleId:
        """Return where a sample comes from.

        Raises:
            DataError: its record is damaged.
        """
        start = number * layout.SAMPLE.itemsize
        self._samples.check(start, start + layout.SAMPLE.itemsize)
        return self._source(number, _SAMPLE.unpack_from(self._samples.buffer, start)[4])

    def _source(self, number: int, line: int) -> SampleId:
        entry = self._entry(number)
        return SampleId(entry.name, line, entry.annotation)

    def _entry(self, number: int) -> layout.IndexedSet:
        """Return the data set a sample belongs to."""
        return self.manifest.datasets[bisect_right(self._first, number) - 1]

    def __getitem__(self, number: int) -> EncodedSample:
        """Return a sample as it was encoded.

        Raises:
            DataError: it is damaged.
        """
        file, start = self._samples, number * layout.SAMPLE.itemsize
        last = number + 1 == len(self._rows)
        file.check(start, start + layout.SAMPLE.itemsize * (1 if last else 2))
        tokens, tiles, supervised, count, line, first_range, first = _SAMPLE.unpack_from(file.buffer, start)
        end_range, end = (
            (self._ranges.size // _RANGE_BYTES, self._media.size // _MEDIUM.size)
            if last
            else _NEXT.unpack_from(file.buffer, start + _NEXT_AT)
        )
        ids = self._tokens[number]
        self._ranges.check(first_range * _RANGE_BYTES, end_range * _RANGE_BYTES)
        ranges = np.ndarray((end_range - first_range, 2), "<i4", self._ranges.buffer, first_range * _RANGE_BYTES)
        text = CompactText(ids, ranges, np.flatnonzero(ids == self._image_token))
        self._media.check(first * _MEDIUM.size, end * _MEDIUM.size)
        entry = self._entry(number)
        items = tuple(self._medium(place, count, entry) for place in range(first, end))
        sample = EncodedSample(text, items, tokens, self._source(number, line))
        self._check_sample(number, sample, tiles, supervised, count)
        return sample

    def _check_sample(self, number: int, sample: EncodedSample, tiles: int, supervised: int, count: int) -> None:
        """Check that the records of a sample agree, as those of a set without checksums may not.

        Raises:
            DataError: they do not.
        """
        text, end, learned = sample.text, 0, 0
        for start, stop in text.supervised.tolist():
            if start < end:  # in order, and none before the text's first id
                break
            end, learned = stop, learned + stop - start
        images = [count for item in sample.media for count in item.tiles]
        length = sample.num_tokens if self._per_tile is None else count + sum(images) * self._per_tile - len(images)
        if not (
            learned == supervised
            and end <= len(text.ids) == count
            and len(images) == len(text.images)
            and sum(images) == tiles
            and min(images, default=1) > 0
            and length == sample.num_tokens
        ):
            raise DataError(
                f"{printable(self.folder)}: the records of sample {number} ({sample.source}) contradict one another: "
                f"the data set is damaged or was built wrongly; {REMEDY}"
            )

    def check(self, config: DataConfig, tokenizer: Tokenizer, facts: ModelFacts) -> None:
        """Check that a run may use the set.

        Raises:
            ConfigError: it was built with another tokenizer, template or tiling, or holds a sample beyond the run's
                budgets; names the numbers.
            DataError: the lengths of its samples are damaged. Planning reads them all; here no reader process has
                been started yet.
        """
        self._samples.check_all()
        for entry in self.manifest.datasets:
            read_operations(entry.image_operations, f"data.indexed_path {self.folder}: data set {entry.name!r}")
        ours, theirs = settings_of(config, tokenizer, facts), self.manifest.settings
        differing = [f"{name} {theirs.get(name)} (now {ours[name]})" for name in ours if theirs.get(name) != ours[name]]
        if tokenizer.fingerprint != self.manifest.tokenizer_sha256:
            differing.append(f"another tokenizer than {tokenizer.model_file}")
        if template_digest(config.template_name) != self.manifest.template_sha256:
            differing.append(f"another text of template {config.template_name}")
        if differing:
            raise ConfigError(f"data.indexed_path {self.folder} was built with {', '.join(differing)}; build it again")
        for field, count, setting in (
            ("tokens", "longest", "max_packed_tokens"),
            ("tokens", "longest", "max_seq_length"),
            ("tiles", "most_tiles", "num_images_expected"),
        ):
            most, room = self.manifest.counts[count], getattr(config, setting)
            if most > room:
                lengths = self.num_tokens if field == "tokens" else self.num_tiles
                source = self.source(int(np.argmax(lengths)))
                raise ConfigError(
                    f"data.indexed_path {printable(self.folder)}: {source} has {most} {field}, data.{setting} is {room}"
                )

        for setting, limit in self.manifest.limits.items():
            if getattr(config, setting) > limit:
                _log.warning(
                    "%s was built with %s %d and left out what is above, this run allows %d; see its report.txt",
                    *(self.folder, setting, limit, getattr(config, setting)),
                )
        self._check_place()

    def _check_place(self) -> None:
        """Look for the first image, whose path may be relative to the folder the set was built in."""
        if self.manifest.embedded or not len(self.files.table):
            return
        path = self.files.table.path(0)
        if not os.path.isabs(path) and not os.path.exists(path):
            raise ConfigError(
                f"data.indexed_path {self.folder}: its first image {path} is not there from {os.getcwd()}; start in "
                "the folder the set was built in, or build it with --images embed"
            )

    def _medium(self, place: int, most: int, entry: layout.IndexedSet) -> Picture | Clip:
        """Return an image or a video of at most so many frames."""
        (file, _, columns, rows, thumbnail, pad, augment, video, frames, first, last) = _MEDIUM.unpack_from(
            self._media.buffer, place * _MEDIUM.size
        )
        if not (0 < frames <= most and 0 <= first < last if video else (columns > 0 and rows > 0) or not columns):
            raise DataError(
                f"{printable(self._media.path)}: record {place}: a grid of {columns} x {rows}, {frames} frames of "
                f"{first} to {last}: the data set is damaged or was built wrongly; {REMEDY}"
            )
        path, operations = self.files.table.path(file), _operations(entry.opening, pad, augment, entry.image_operations)
        if video:
            return Clip(path, frames, first, last, file=file, operations=operations)
        grid = (columns, rows) if columns else None
        return Picture(path, grid, thumbnail, file=file, operations=operations)


@cache
def _operations(opening: Opening, pads: bool, augments: bool, further: tuple[str, ...]) -> Operations:
    """Return the operations that a record and its data set note; older sets may note both of the two flags."""
    found = (PadToSquare(),) if pads else ()
    return (*opening.operations, *found, *operations_of(augment=augments, further=further))
