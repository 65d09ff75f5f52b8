"""A checkpoint that is to be read: an HF folder in either layout, or a Megatron folder, converted or trained.

Opening looks at everything but the values of weights: names, shapes and types against the table, files beside them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.adapters import AdapterPointer
from megatron_v2pe.checkpoint.description import StoredTensor
from megatron_v2pe.checkpoint.folder import AVERAGED, DESCRIPTION, HF_FOLDER, HF_LAYOUT
from megatron_v2pe.checkpoint.growth import Growth, grown_layout
from megatron_v2pe.checkpoint.hf.adapter_files import refuse_adapter, refuse_adapter_tensors
from megatron_v2pe.checkpoint.hf.folder import INDEX, FileLayout
from megatron_v2pe.checkpoint.hf.grown_rows import GrownRows
from megatron_v2pe.checkpoint.hf.manifest import TensorManifest
from megatron_v2pe.checkpoint.hf.row_sources import HFRows, MegatronRows, RowSource
from megatron_v2pe.checkpoint.hf.safetensors_io import TensorPlace
from megatron_v2pe.checkpoint.hf.table import MappingTable, mapping_table
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.brought_tokens import check_one_row_each, growth_of
from megatron_v2pe.checkpoint.low_rank.merged_rows import MergedRows
from megatron_v2pe.checkpoint.low_rank.run_adapter import base_of, check_base, read_run
from megatron_v2pe.checkpoint.low_rank.unmerged import open_weights
from megatron_v2pe.checkpoint.vet import read_description, vet_checkpoint
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_config
from megatron_v2pe.models.native_config import NATIVE, ORIGINAL

CONFIG = "config.json"
_log = get_logger(__name__)
_COMPARED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class OpenSource:
    """A checkpoint that was looked at."""

    folder: Path
    hf: Path
    """Folder of its `config.json` and tokenizer."""
    is_hf: bool
    model: InternVLConfig
    layout: str
    """`original` or `native`: how its HF tensors are called and cut."""
    table: MappingTable
    """The rows of that layout."""
    files: FileLayout
    """How its weights lie in an HF folder, or lay in the one it comes from; types too."""
    rows: RowSource
    manifest: TensorManifest | None
    """SHA-256 of its HF tensors, where a conversion has left them."""
    trained: bool = False
    """Whether it was written by a training run."""
    growth: Growth | None = None
    """Tokens that adapters bring, which the files beside its weights (`hf`) have not; `model` has them."""
    merged: Sequence[Any] = ()
    """What `rows` have of adapters, as plain values: a conversion's bytes depend on them."""
    renamed: bool = False
    """Whether the tensors have other names in the files than `files` says: those of an unmerged adapter's base."""

    @property
    def where(self) -> str:
        """The folder, for messages."""
        return printable(self.folder)

    def table_of(self, layout: str) -> MappingTable:
        """Return the table of this model in a layout, under the names that are written."""
        return self.table if layout == self.layout else mapping_table(self.model, layout)

    def types(self) -> dict[str, torch.dtype]:
        """Return the type of every key of a Megatron-Core checkpoint, as the HF tensors have it."""
        places = self.files.places()
        return {mapping.key: places[mapping.name].dtype for mapping in self.table.tensors}

    def stored_bytes(self, dtype: torch.dtype | None = None) -> Counter[torch.dtype]:
        """Return the bytes of the tensors of a Megatron checkpoint per type, with `dtype` those it has in that type.

        Those of a run may be of another type than the HF tensors of the folder it started from.
        """
        found: Counter[torch.dtype] = Counter()
        sizes = {row.key: math.prod(row.key_shape) for row in self.table.tensors}  # a copy is stored once
        for key, count in sizes.items():
            kind = dtype or self.rows.keys[key].dtype
            found[kind] += count * kind.itemsize
        return found

    def bytes_of(self) -> Counter[torch.dtype]:
        """Return the bytes of the HF tensors per type."""
        found: Counter[torch.dtype] = Counter()
        for place in self.files.places().values():
            found[place.dtype] += place.nbytes
        return found


def open_hf(folder: Path, merge: bool = True) -> OpenSource:
    """Open an HF folder.

    Args:
        folder: also one of the published code that holds an adapter among its weights.
        merge: read such a folder with its adapter merged into the weights; otherwise its base alone.

    Raises:
        ConfigError: an architecture that is not supported.
        CheckpointError: weights are missing, of other names or shapes than the architecture's, or damaged.
    """
    refuse_adapter(folder)
    opened = open_weights(folder)
    model = InternVLConfig.from_hf(opened.config, printable(folder / CONFIG))
    weights, layout = opened.weights, layout_of(folder)
    table = mapping_table(model, layout, weights.layout.places())
    check_places(table, weights.layout.places(), printable(folder))
    source = OpenSource(
        folder,
        folder,
        True,
        model,
        layout,
        table,
        weights.layout,
        HFRows(weights, table),
        TensorManifest.read(folder),
        renamed=opened.halves is not None,
    )
    return merged_source(source, [(opened.adapter(model, folder), 1.0)]) if source.renamed and merge else source


def open_megatron(folder: Path, verify: bool = True, averaged: bool = False, kept: int = 0) -> OpenSource:
    """Open the folder of a Megatron checkpoint.

    Args:
        folder: of one checkpoint, see `resolve.find_checkpoint`. One of a run that trained an adapter is opened with
            its base, and the adapter merged into it.
        verify: compare what is read with the folder's checksums.
        averaged: take the moving average (EMA) of the weights that have learned, in place of the weights.
        kept: bytes of a shard that stays in memory, see `MegatronRows`.

    Raises:
        ConfigError: an architecture that is not supported.
        CheckpointError: it is incomplete, damaged, refused or of another model, or holds no average; the base of an
            adapter is gone or was changed.
    """
    if AdapterPointer.read(folder) is not None:
        return _open_with_adapter(folder, verify, averaged)
    reader = vet_checkpoint(folder, verify)
    hf = folder / HF_FOLDER
    model = InternVLConfig.from_hf(read_config(hf), printable(hf / CONFIG))
    files, layout = FileLayout.load(hf / HF_LAYOUT), layout_of(hf)
    places = files.places()
    table = mapping_table(model, layout, places)
    _check_index(hf / INDEX, files)
    source = str(hf / HF_LAYOUT)
    table.check_names(places, source)
    for mapping in table.tensors:
        table.check_shape(mapping, places[mapping.name].shape, source)
    weights = {key: entry for key, entry in reader.tensors.items() if not key.startswith("optimizer.")}
    if averaged:
        weights |= averages_in(reader.tensors, printable(folder))
    refuse_adapter_tensors(weights, str(folder))
    table.check_keys({key: entry.size for key, entry in weights.items()}, str(folder))
    trained = read_description(folder / DESCRIPTION).get("kind") != "converted"
    manifest = TensorManifest.read(folder) if verify and not trained else None
    rows = MegatronRows(folder, weights, reader.checksums, kept)
    return OpenSource(folder, hf, False, model, layout, table, files, rows, manifest, trained)


def _open_with_adapter(folder: Path, verify: bool, averaged: bool) -> OpenSource:
    """Open the checkpoint of a run that trained an adapter; for errors see `open_megatron`."""
    pointer = AdapterPointer.read(folder)
    assert pointer is not None
    adapter, place = read_run(folder, verify, averaged), base_of(pointer, folder)
    base = open_hf(place.folder) if place.is_hf else open_megatron(place.folder, verify)
    check_is_base(adapter, base)
    files, merged = FileLayout.load(folder / HF_FOLDER / HF_LAYOUT), merged_source(base, [(adapter, 1.0)])
    own = {"folder": folder, "hf": folder / HF_FOLDER, "is_hf": False, "trained": True, "files": files}
    return replace(merged, **own, growth=None)  # the files of the run have its tokens


def check_is_base(adapter: Adapter, base: OpenSource) -> None:
    """Check that a checkpoint is the base of an adapter, as far as the adapter states one.

    Raises:
        CheckpointError: it is another model, or was changed since; both fingerprints are named.
    """
    other = mapping_table(base.model, NATIVE if base.layout == ORIGINAL else ORIGINAL)
    if not check_base(adapter, base.folder, base.table, other, base.rows):
        _log.warning(
            "%s: states no fingerprint of its base; its shapes are those of %s, and that is all that is known",
            adapter.source,
            base.where,
        )


def merged_source(
    base: OpenSource, adapters: Sequence[tuple[Adapter, float]], dtype: torch.dtype | None = None
) -> OpenSource:
    """Return a base with adapters merged into it; for arguments see `MergedRows`.

    Its tensors are no longer those of the base's manifest, so it has none. It has the tokens that adapters bring.

    Raises:
        ConfigError: see `growth_of`; or two adapters have different rows of one token.
        CheckpointError: see `growth_of`.
    """
    stated = [adapter.rows for adapter, _ in adapters]
    growth = growth_of(stated, base.hf, base.model)
    check_one_row_each(stated)
    base = base if growth is None else grown_source(base, growth)
    merged = [[adapter.digest(), weight] for adapter, weight in adapters]
    rows = MergedRows(base.rows, adapters, dtype)
    return replace(base, rows=rows, manifest=None, merged=[*base.merged, *merged])


def grown_source(source: OpenSource, growth: Growth) -> OpenSource:
    """Return an open checkpoint whose tables have rows for new tokens; the files beside its weights stay."""
    model = growth.model(source.model)
    files = grown_layout(source.files, source.table, growth)
    table = mapping_table(model, source.layout, files.places())
    rows = GrownRows(source.rows, growth)
    return replace(source, model=model, table=table, files=files, rows=rows, manifest=None, growth=growth)


def averages_in(tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """Return the averaged tensors of a training checkpoint, by the keys of the weights they are averages of.

    Raises:
        CheckpointError: there are none.
    """
    found = {key.removeprefix(AVERAGED): entry for key, entry in tensors.items() if key.startswith(AVERAGED)}
    if not found:
        raise CheckpointError(
            f"{source}: holds no average of weights (EMA): train with --optimizer.ema-decay 0.9999, or take the "
            "weights themselves (--weights model)"
        )
    return found


def check_places(table: MappingTable, places: dict[str, TensorPlace], source: str) -> Counter[torch.dtype]:
    """Check names, shapes and types of all tensors of an HF folder; return bytes per type.

    Raises:
        CheckpointError: tensors are missing or left over, of another shape than the table's, of no floating-point
            type, or of several types that would become one tensor.
    """
    refuse_adapter_tensors(places, source)
    table.check_names(places, source)
    bytes_of: Counter[torch.dtype] = Counter()
    of_key: dict[str, tuple[str, torch.dtype]] = {}
    for mapping in table.tensors:
        place = places[mapping.name]
        table.check_shape(mapping, place.shape, source)
        if not place.dtype.is_floating_point:
            raise CheckpointError(f"{source}: {place.name} is {place.dtype}, expected a floating-point type")
        first, dtype = of_key.setdefault(mapping.key, (place.name, place.dtype))
        if dtype != place.dtype:
            raise CheckpointError(
                f"{source}: {first} is {dtype} and {place.name} is {place.dtype}; they become one tensor"
            )
        bytes_of[place.dtype] += place.nbytes
    return bytes_of


def check_copies(source: OpenSource) -> None:
    """Check that an HF folder whose model is tied has in its output projection, if it has one, its embedding.

    Raises:
        CheckpointError: the two differ; they are named.
    """
    weights = open_weights(source.folder).weights
    own = " (at the top: transformers 5 writes true there also for such a model)" if source.layout == NATIVE else ""
    for copy in (mapping for mapping in source.table.tensors if mapping.copy):
        original = next(row for row in source.table.tensors if row.key == copy.key and not row.copy)
        left = weights.layout.places()[copy.name].nbytes
        one, other = (memoryview(bytearray(min(_COMPARED_AT_ONCE, left))) for _ in range(2))
        for begin in range(0, left, _COMPARED_AT_ONCE):
            parts = one[: min(_COMPARED_AT_ONCE, left - begin)], other[: min(_COMPARED_AT_ONCE, left - begin)]
            for name, part in zip((original.name, copy.name), parts, strict=True):
                weights.read_into(name, begin, part)
            if parts[0] != parts[1]:
                raise CheckpointError(
                    f"{source.where}: {copy.name} is not {original.name}, though tie_word_embeddings of config.json "
                    f"says that they are one; state false there if the model has an output projection of its own{own}, "
                    f"or remove {copy.name}"
                )


def _check_index(path: Path, layout: FileLayout) -> None:
    """Check that the index of an HF folder, if it has one, says of every tensor in which file it is."""
    if not path.is_file():
        return
    expected = {place.name: file for file, header in layout.shards for place in header.tensors}
    if read_description(path).get("weight_map") != expected:
        raise CheckpointError(f"{printable(path)}: damaged: weight_map does not fit {HF_LAYOUT} beside it")
