"""An open checkpoint becomes a Megatron-Core checkpoint folder that any layout loads: weights alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.base.progress import byte_progress
from megatron_v2pe.checkpoint.checksums import CHECKSUMS, Checksums, sums_of_files
from megatron_v2pe.checkpoint.description import import_for_writing, write_description
from megatron_v2pe.checkpoint.folder import DESCRIPTION, FORMAT_VERSION, HF_FOLDER, HF_LAYOUT
from megatron_v2pe.checkpoint.hf import hf_config
from megatron_v2pe.checkpoint.hf.checks_beside import ChecksBeside
from megatron_v2pe.checkpoint.hf.finite import NumbersOnly
from megatron_v2pe.checkpoint.hf.folder import FileLayout, copy_other_files
from megatron_v2pe.checkpoint.hf.hub_digests import check_digest, known_digests
from megatron_v2pe.checkpoint.hf.job import EXAMINERS, Job
from megatron_v2pe.checkpoint.hf.journal import stamps, unfinished_folder
from megatron_v2pe.checkpoint.hf.manifest import MANIFEST, manifest_of
from megatron_v2pe.checkpoint.hf.open_source import CONFIG, OpenSource
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.plan import ConversionPlan
from megatron_v2pe.checkpoint.hf.relayout import correct_total, write_index
from megatron_v2pe.checkpoint.hf.side_files import SideFiles
from megatron_v2pe.checkpoint.hf.write_mcore import write_tensors
from megatron_v2pe.models.config import read_config
from megatron_v2pe.version import __version__


def write_megatron(
    source: OpenSource,
    target: Path,
    options: Options,
    what: str,
    config: dict[str, Any] | None = None,
    side_files: SideFiles | None = None,
) -> None:
    """Write the folder; it appears when it is complete, or not at all.

    Args:
        source: the checkpoint.
        target: folder to create.
        options: what is asked.
        what: is done, for the bar.
        config: content of `hf/config.json`, in its original form; None: as it lies there.
        side_files: writes tokenizer and processor beside a changed `config.json`; None: they are copied as they are.

    Raises:
        CheckpointError: the weights are damaged, or `target` exists.
        InUseError: another process writes to `target`.
        OSError: the disk is full.
    """
    dtype = options.wanted_dtype
    files = retyped(source, options)
    ConversionPlan.of(source, target, options, files, to_mcore=True).announce()
    identity = {"source": source.where, "files": stamps(source.folder), "to": "mcore", "version": __version__}
    identity |= {**options.identity(), **({"merged": source.merged} if source.merged else {})}
    known = source.manifest if dtype is None else None
    with unfinished_folder(target, options.overwrite, DESCRIPTION, identity) as unfinished:
        folder = unfinished.folder
        numbers = NumbersOnly(source.where, options.refuse_non_finite)
        stored = source.stored_bytes()
        total = stored.total()
        with ChecksBeside(EXAMINERS) as checks, byte_progress(total, what) as progress:
            job = Job(unfinished.journal, numbers, options.budget, progress, source.where, known)
            checks.add(import_for_writing)
            if source.is_hf:
                for path, digest in known_digests(source.folder):
                    checks.add(check_digest, path, digest)
            types = {name: place.dtype for name, place in files.places().items()}
            largest = options.largest_file
            written = write_tensors(
                source.table, source.rows, folder, job, checks, types=types, dtype=dtype, largest_file=largest
            )
        numbers.conclude()
        write_description(folder, written, {})
        (folder / HF_FOLDER).mkdir(exist_ok=True)
        changed = bool(dtype or source.trained or config or source.merged)  # sums of the start are of other bytes
        copy_other_files(source.hf, folder / HF_FOLDER, but=(HF_LAYOUT, *((MANIFEST, CHECKSUMS) if changed else ())))
        files.save(folder / HF_FOLDER / HF_LAYOUT)
        if source.renamed:
            write_index(folder / HF_FOLDER, files)
        if dtype is not None:
            config = hf_config.with_dtype(config or read_config(source.hf), str(dtype).removeprefix("torch."))
            correct_total(folder / HF_FOLDER, files)
        if config is not None:
            stated = hf_config.for_folder(config, source.layout, source.hf)
            (folder / HF_FOLDER / CONFIG).write_text(hf_config.to_text(stated), encoding="utf-8")
            if side_files is not None:
                side_files(source.hf, folder / HF_FOLDER, source.layout, stated)
        manifest_of(job.sums, source.layout).write(folder)
        description = _description(stored.most_common(1)[0][0] if dtype is None else dtype)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        Checksums({**written.file_sums(), **sums_of_files(folder, but=written.sizes)}).write(folder)


def retyped(source: OpenSource, options: Options) -> FileLayout:
    """Return the HF tensors of a checkpoint in the files they lie in, in the type that is asked for."""
    dtype = options.wanted_dtype
    if dtype is None:
        return source.files
    return FileLayout(tuple((name, header.with_dtype(dtype)) for name, header in source.files.shards))


def _description(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": "converted",
        "iteration": 0,
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {"megatron_v2pe": __version__, "torch": torch.__version__},
    }
