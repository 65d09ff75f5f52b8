"""An open checkpoint becomes an HF folder, in the layout, the type and the files that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_v2pe.base.progress import byte_progress
from megatron_v2pe.checkpoint.checksums import CHECKSUMS, Checksums, sums_of_files
from megatron_v2pe.checkpoint.folder import HF_LAYOUT
from megatron_v2pe.checkpoint.hf import hf_config
from megatron_v2pe.checkpoint.hf.budget import bytes_in
from megatron_v2pe.checkpoint.hf.finite import NumbersOnly
from megatron_v2pe.checkpoint.hf.folder import FileLayout, copy_other_files
from megatron_v2pe.checkpoint.hf.job import Job
from megatron_v2pe.checkpoint.hf.journal import stamps, unfinished_folder
from megatron_v2pe.checkpoint.hf.manifest import MANIFEST, TensorManifest, manifest_of
from megatron_v2pe.checkpoint.hf.open_source import CONFIG, OpenSource
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.plan import ConversionPlan
from megatron_v2pe.checkpoint.hf.relayout import DEFAULT_SHARD, correct_total, cut, write_index
from megatron_v2pe.checkpoint.hf.row_sources import HFTensors
from megatron_v2pe.checkpoint.hf.side_files import SideFiles
from megatron_v2pe.checkpoint.hf.to_mcore import retyped
from megatron_v2pe.checkpoint.hf.write_hf import write_files
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig, read_config
from megatron_v2pe.models.native_config import ORIGINAL
from megatron_v2pe.models.native_texts import with_language_model
from megatron_v2pe.version import __version__


def write_hf(
    source: OpenSource,
    target: Path,
    options: Options,
    what: str,
    config: dict[str, Any] | None,
    new: bool,
    side_files: SideFiles | None = None,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder; it appears when it is complete, or not at all.

    Args:
        source: the checkpoint.
        target: folder to create.
        options: what is asked.
        what: is done, for the bar.
        config: content of `config.json`, in its original form; None: as it lies there.
        new: whether the folder is another one than the original; then it gets checksums, and a manifest.
        side_files: writes tokenizer and processor of a folder in another layout; None: they are copied as they are.
        also: what else decides about the bytes that are written, as plain values: an unfinished conversion goes on
            only where all of it is the same.

    Raises:
        ConfigError: the layout has no form for the model.
        CheckpointError: the weights are damaged, or `target` exists.
        InUseError: another process writes to `target`.
        OSError: the disk is full.
    """
    layout = options.layout or source.layout
    source, config = _restated(source, options, layout, config)
    config = _config(source, options, layout, config)  # before anything is written: it may be refused
    table, files = source.table_of(layout), new_files(source, options)
    recut = files_are_new(source, options)
    ConversionPlan.of(source, target, options, files, to_mcore=False).announce()
    identity = {"source": source.where, "files": stamps(source.folder), "to": "hf", "version": __version__}
    identity |= {**options.identity(), **({"merged": source.merged} if source.merged else {}), **(also or {})}
    with unfinished_folder(target, options.overwrite, CONFIG, identity) as unfinished:
        folder = unfinished.folder
        numbers = NumbersOnly(source.where, options.refuse_non_finite)
        with byte_progress(sum(place.nbytes for place in files.places().values()), what) as progress:
            known = _known(source, options, layout)
            job = Job(unfinished.journal, numbers, options.budget, progress, source.where, known)
            written = write_files(HFTensors(source.rows, table), files, folder, job, summed=new)
        numbers.conclude()
        copy_other_files(source.hf, folder, but=(HF_LAYOUT, *((MANIFEST, CHECKSUMS) if new else ())))
        if config is not None:
            (folder / CONFIG).write_text(hf_config.to_text(config), encoding="utf-8")
            if side_files is not None:
                side_files(source.hf, folder, layout, config)
        if recut:
            write_index(folder, files)
        elif options.dtype is not None:
            correct_total(folder, files)
        if options.manifest or (options.manifest is None and new):
            manifest_of(job.sums, layout).write(folder)
        if new:
            Checksums({**written, **sums_of_files(folder, but=written)}).write(folder)


def files_are_new(source: OpenSource, options: Options) -> bool:
    """Tell whether the weights are cut into other files than those of the source."""
    return options.largest_file is not None or source.renamed or (options.layout or source.layout) != source.layout


def new_files(source: OpenSource, options: Options) -> FileLayout:
    """Return the files of weights that are written: names, and of every tensor its place and type."""
    wanted = options.wanted_dtype
    if not files_are_new(source, options):
        return retyped(source, options)
    types = source.types()
    largest = options.largest_file or bytes_in(DEFAULT_SHARD, "--max-shard-size")
    table = source.table_of(options.layout or source.layout)
    return cut(((row.name, row.shape, wanted or types[row.key]) for row in table.tensors), largest)


def _known(source: OpenSource, options: Options, layout: str) -> TensorManifest | None:
    """Return the sums that the tensors must have: where they are to be those of the original, and it states them."""
    return source.manifest if options.dtype is None and layout == source.layout else None


def _config(source: OpenSource, options: Options, layout: str, config: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the `config.json` to write, in its layout; None: as it lies there."""
    if options.wanted_dtype is not None:
        name = str(options.wanted_dtype).removeprefix("torch.")
        config = hf_config.with_dtype(config or read_config(source.hf), name)
    if config is None and layout != source.layout:
        config = read_config(source.hf)
    return None if config is None else hf_config.for_folder(config, layout, source.hf)


def _restated(
    source: OpenSource, options: Options, layout: str, config: dict[str, Any] | None
) -> tuple[OpenSource, dict[str, Any] | None]:
    """Return the checkpoint and its `config.json` with the language model stated as the user asks.

    Raises:
        ConfigError: it is asked for another layout than the original one of a native checkpoint, or the language model
            cannot be stated so.
    """
    if options.language_model is None:
        return source, config
    if layout != ORIGINAL or source.layout == ORIGINAL:
        raise ConfigError(
            f"--language-model {options.language_model}: it chooses the language model of an original folder that is "
            f"made of a native one; here {source.layout} becomes {layout}: leave it out"
        )
    config = with_language_model(config or read_config(source.hf), options.language_model)
    return replace(source, model=InternVLConfig.from_hf(config, source.where)), config
