"""Reading an indexed data set: any sample by its number, all lengths at once; nothing is loaded before it is needed."""

from __future__ import annotations

import os
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.documents import ModelFacts
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.files import FileStore, map_records
from megatron_v2pe.data.indexed.megatron_format import Sequences
from megatron_v2pe.data.indexed.settings import settings_of, template_digest
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Clip, CompactText, EncodedSample, Picture, SampleId
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.logging import get_logger

_log = get_logger(__name__)


class IndexedSamples:
    """The samples of a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Open a finished set.

        Raises:
            DataError: not one, of another version, or a file is damaged.
        """
        self.folder = Path(folder)
        self.manifest = layout.Manifest.read(self.folder)
        self._rows = map_records(self.folder / layout.SAMPLES, layout.SAMPLE)
        self._ranges = map_records(self.folder / layout.RANGES, np.dtype("<i4")).reshape(-1, 2)
        self._media = map_records(self.folder / layout.MEDIA, layout.MEDIUM)
        self._tokens = Sequences(self.folder / layout.TOKENS)
        self.files = FileStore(self.folder, self.manifest.embedded)
        self._first = [entry.first for entry in self.manifest.datasets]
        counts = {len(self._rows), len(self._tokens), self.manifest.counts["samples"]}
        if len(counts) > 1:
            raise DataError(f"{self.folder}: {sorted(counts)} samples by its files: parts of different builds")

    def __reduce__(self) -> tuple[type[IndexedSamples], tuple[Path]]:
        """Open again in another process."""
        return IndexedSamples, (self.folder,)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of every sample, int32 [n], a view of the file."""
        return self._rows["tokens"]

    @property
    def num_tiles(self) -> np.ndarray:
        """Tiles of every sample, int32 [n], a view of the file."""
        return self._rows["tiles"]

    def source(self, number: int) -> SampleId:
        """Return where a sample comes from."""
        entry = self.manifest.datasets[bisect_right(self._first, number) - 1]
        return SampleId(entry.name, int(self._rows["line"][number]), entry.annotation)

    def __getitem__(self, number: int) -> EncodedSample:
        """Return a sample as it was encoded."""
        row = self._rows[number]
        ids = self._tokens[number]
        ranges = self._ranges[row["first_range"] : self._end("first_range", number, len(self._ranges))]
        media = self._media[row["first_medium"] : self._end("first_medium", number, len(self._media))]
        text = CompactText(ids, ranges, np.flatnonzero(ids == self.manifest.settings["image_token"]))
        items = tuple(self._medium(medium) for medium in media)
        return EncodedSample(text, items, int(row["tokens"]), self.source(number))

    def check(self, config: DataConfig, tokenizer: Tokenizer, facts: ModelFacts) -> None:
        """Check that a run may use the set.

        Raises:
            ConfigError: it was built with another tokenizer, template or tiling, or holds a sample beyond the run's
                budgets; names the numbers.
        """
        ours, theirs = settings_of(config, tokenizer, facts), self.manifest.settings
        differing = [f"{name} {theirs.get(name)} (now {ours[name]})" for name in ours if theirs.get(name) != ours[name]]
        if tokenizer.fingerprint != self.manifest.tokenizer_sha256:
            differing.append(f"another tokenizer than {tokenizer.model_file}")
        if template_digest(config.template) != self.manifest.template_sha256:
            differing.append(f"another text of template {config.template}")
        if differing:
            raise ConfigError(f"data.indexed_path {self.folder} was built with {', '.join(differing)}; build it again")
        for field, count, setting in (
            ("tokens", "longest", "max_packed_tokens"),
            ("tokens", "longest", "max_seq_length"),
            ("tiles", "most_tiles", "num_images_expected"),
        ):
            most, room = self.manifest.counts[count], getattr(config, setting)
            if most > room:
                source = self.source(int(np.argmax(self._rows[field])))
                raise ConfigError(
                    f"data.indexed_path {self.folder}: {source} has {most} {field}, data.{setting} is {room}"
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

    def _end(self, field: str, number: int, total: int) -> int:
        return int(self._rows[field][number + 1]) if number + 1 < len(self._rows) else total

    def _medium(self, row: Any) -> Picture | Clip:
        file = int(row["file"])
        common = {"file": file, "pad_to_square": bool(row["pad_to_square"]), "augment": bool(row["augment"])}
        path = self.files.table.path(file)
        if row["video"]:
            return Clip(path, int(row["frames"]), int(row["first"]), int(row["last"]), **common)
        grid = (int(row["columns"]), int(row["rows"])) if row["columns"] else None
        return Picture(path, grid, thumbnail=bool(row["thumbnail"]), **common)
