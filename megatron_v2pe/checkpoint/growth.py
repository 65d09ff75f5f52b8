"""A checkpoint as if it had been given new tokens: more rows in the vocabulary's tables, other files beside them.

Nothing on the disk is changed or copied. A run that adds tokens reads its start through a `GrownReader`: rows of a new
token are the mean of the rows of the pieces it replaces, taken in float32 (float64 tables: in float64), whatever rank
asks for them and wherever those pieces lie. Its own checkpoints then hold the grown tables and the files of
`grown_files`, and nobody who opens them has to know.

A token takes a row that the tables have beyond the tokenizer's ids, where there is one (published Qwen models have some
hundreds), and the tables grow by the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.checkpoint.folder import HF_FOLDER, HF_LAYOUT, ORIGINALS
from megatron_v2pe.checkpoint.hf.folder import INDEX, FileLayout
from megatron_v2pe.checkpoint.hf.hf_config import for_folder, to_text
from megatron_v2pe.checkpoint.hf.table import TABLES, MappingTable, mapping_table
from megatron_v2pe.checkpoint.resolve import CONFIG
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader, check_padding
from megatron_v2pe.checkpoint.trained import trained_config
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.grown_tokenizer import NewToken, changed_beside, grown_tokenizer_files
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.foreign.tokenizer_files import AddedToken
from megatron_v2pe.models.config import InternVLConfig, layout_of
from megatron_v2pe.models.config_fields import LARGEST_VOCABULARY


@dataclass(frozen=True)
class Growth:
    """New tokens of a checkpoint, and the rows of its tables."""

    tokens: tuple[NewToken, ...]
    """In the order of their ids, at least one."""
    rows_before: int
    """Vocabulary rows of the checkpoint."""

    @property
    def rows(self) -> int:
        """Vocabulary rows with the new tokens."""
        return max(self.rows_before, self.tokens[-1].id + 1)

    @property
    def added(self) -> list[AddedToken]:
        """The tokens as a tokenizer has them."""
        return [token.added for token in self.tokens]

    @cached_property
    def pieces(self) -> Mapping[int, tuple[int, ...]]:
        """Ids of the pieces that each new token replaces, by its id."""
        return {token.id: token.pieces for token in self.tokens}

    def model(self, before: InternVLConfig) -> InternVLConfig:
        """Return a model with rows for the new tokens.

        Raises:
            ConfigError: they are more than a vocabulary may have.
        """
        if self.rows > LARGEST_VOCABULARY:
            raise ConfigError(f"{len(self.tokens)} new tokens: {self.rows} rows, at most {LARGEST_VOCABULARY} are read")
        return replace(before, llm=replace(before.llm, vocab_size=self.rows))

    def in_words(self) -> str:
        """Return ids and rows in a line."""
        spare = sum(token.id < self.rows_before for token in self.tokens)
        grown = self.rows - self.rows_before
        rows = f"the tables keep their {self.rows_before:,} rows"
        if grown:
            rows = f"the tables grow from {self.rows_before:,} rows to {self.rows:,}"
        used = f"; {spare:,} of them take spare rows" if spare else ""
        return f"{len(self.tokens):,} new tokens, ids {self.tokens[0].id} to {self.tokens[-1].id}{used}; {rows}"


class GrownReader(TorchDistReader):
    """Reads a checkpoint's tensors as they are, and its tables with the rows of new tokens."""

    def __init__(self, reader: TorchDistReader, growth: Growth) -> None:
        """Take what reads the checkpoint.

        Raises:
            CheckpointError: a table has other rows than the checkpoint's `config.json` says, which are no padding.
        """
        tensors = dict(reader.tensors)
        for key in TABLES:
            if (entry := tensors.get(key)) is None:
                continue
            if entry.size[0] < growth.rows_before:
                raise CheckpointError(
                    f"{reader.folder}: {key} has {entry.size[0]} rows, its config.json says {growth.rows_before}"
                )
            if entry.size[0] > growth.rows_before:
                check_padding(key, entry.size, growth.rows_before, reader, reader.folder)
            tensors[key] = replace(entry, size=(growth.rows, *entry.size[1:]))
        super().__init__(reader.folder, tensors, reader.checksums)
        self._growth = growth
        self._rows: dict[tuple[str, int, tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def read(self, key: str, begin: tuple[int, ...], sizes: tuple[int, ...], target: Tensor | None = None) -> Tensor:
        """Read a part of a tensor; for arguments and errors see `TorchDistReader.read`."""
        if key not in TABLES:
            return super().read(key, begin, sizes, target)
        entry, growth = self.tensors[key], self._growth
        out = torch.empty(sizes, dtype=entry.dtype) if target is None else target
        first, stored = begin[0], min(max(growth.rows_before - begin[0], 0), sizes[0])
        if stored:
            super().read(key, begin, (stored, *sizes[1:]), out[:stored])
        for row in range(max(first, growth.tokens[0].id), min(first + sizes[0], growth.rows)):
            if row in growth.pieces:  # spare rows of the checkpoint behind the last new token stay as they are
                out[row - first].copy_(self._mean(key, growth.pieces[row], begin[1:], sizes[1:]))
        return out

    def _mean(self, key: str, pieces: Sequence[int], begin: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        return torch.stack([self._row(key, piece, begin, sizes) for piece in pieces]).mean(0)

    def _row(self, key: str, piece: int, begin: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """Return a row, or a part of it, in a wide type; tokens of one kind share most of their pieces."""
        place = (key, piece, begin, sizes)
        if place not in self._rows:
            wide = torch.promote_types(self.tensors[key].dtype, torch.float32)
            self._rows[place] = super().read(key, (piece, *begin), (1, *sizes))[0].to(wide)
        return self._rows[place]


def grown_files(checkpoint: Path, growth: Growth) -> dict[str, str]:
    """Return the files of a run's checkpoints that are not those of its start: name -> content.

    They are `config.json` with the rows of the tables, the cut of the HF files, and the tokenizer's files.

    Args:
        checkpoint: the Megatron checkpoint folder that the run starts from.
        growth: of the run.

    Raises:
        ConfigError: `config.json` cannot be read.
        CheckpointError: a file is damaged.
    """
    hf = checkpoint / HF_FOLDER
    stated, layout = trained_config(checkpoint), layout_of(hf)
    before = InternVLConfig.from_hf(stated, printable(hf / CONFIG))
    files = {CONFIG: to_text(for_folder(grown_config(stated, growth), layout, hf)), **grown_side_files(hf, growth)}
    if growth.rows != growth.rows_before:
        cut = FileLayout.load(hf / HF_LAYOUT)
        grown = grown_layout(cut, mapping_table(before, layout, cut.places()), growth)
        files |= {HF_LAYOUT: grown.to_text(), **grown_index(hf, grown)}
    return {f"{HF_FOLDER}/{name}": content for name, content in files.items()}


def grown_config(config: dict[str, Any], growth: Growth) -> dict[str, Any]:
    """Return a `config.json` in original form with the rows of the grown tables."""
    return {**config, "llm_config": {**config["llm_config"], "vocab_size": growth.rows}}


def grown_side_files(hf: Path, growth: Growth) -> dict[str, str]:
    """Return the files of a tokenizer that change, also of those kept for the other layout: name -> content.

    Raises:
        CheckpointError: a file is damaged.
    """
    files = grown_tokenizer_files(hf, growth.tokens, CheckpointError)
    aside = hf / ORIGINALS
    if aside.is_dir():
        changed = changed_beside(hf, aside, growth.tokens, CheckpointError)
        files |= {f"{ORIGINALS}/{name}": content for name, content in changed.items()}
    return files


def grown_layout(files: FileLayout, table: MappingTable, growth: Growth) -> FileLayout:
    """Return how HF weights are cut into files, with more rows in the tables.

    Args:
        files: as they are.
        table: of the model as it is, and of the layout of the files.
        growth: the new tokens.
    """
    places = files.places()
    names = [row.name for row in table.tensors if row.key in TABLES]
    shapes = {name: (growth.rows, *places[name].shape[1:]) for name in names}
    return FileLayout(tuple((name, header.with_shapes(shapes)) for name, header in files.shards))


def grown_index(hf: Path, files: FileLayout) -> dict[str, str]:
    """Return the index of grown HF weights, where there is one: name -> content.

    Raises:
        CheckpointError: the index is damaged.
    """
    if not (hf / INDEX).is_file():
        return {}
    index = read_json_object(hf / INDEX, CheckpointError, 1 << 26, unique=True)
    metadata = Fields(index, printable(hf / INDEX), CheckpointError).get("metadata", dict, {})
    metadata = {**metadata, "total_size": sum(place.nbytes for place in files.places().values())}
    return {INDEX: json.dumps({**index, "metadata": metadata}, indent=2) + "\n"}
