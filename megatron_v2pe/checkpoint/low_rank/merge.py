"""A base and adapters become one checkpoint: read, held against each other, and written a stretch of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.growth import grown_config
from megatron_v2pe.checkpoint.hf.folder import copy_other_files
from megatron_v2pe.checkpoint.hf.grown_rows import grown_beside
from megatron_v2pe.checkpoint.hf.hf_config import for_folder, to_text
from megatron_v2pe.checkpoint.hf.open_source import (
    CONFIG,
    OpenSource,
    check_is_base,
    merged_source,
    open_hf,
    open_megatron,
)
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.side_files import SideFiles, check_side_files
from megatron_v2pe.checkpoint.hf.to_hf import write_hf
from megatron_v2pe.checkpoint.hf.to_mcore import write_megatron
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.open_adapter import is_adapter, open_adapter, open_own
from megatron_v2pe.checkpoint.low_rank.peft_folder import write_peft
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.trained import loadable, stated_by, trained_config
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import read_config

FORMS = ("hf", "mcore")
"""What a merged checkpoint may be written as."""
_log = get_logger(__name__)


def merge_adapters(
    base: Path,
    adapters: Sequence[Path],
    target: Path,
    *,
    weights: Sequence[float] = (),
    form: str | None = None,
    overwrite: bool = False,
    refuse_non_finite: bool = True,
    dtype: str | None = None,
    layout: str | None = None,
    memory_limit: str | None = None,
    max_shard_size: str | None = None,
    verify: bool = True,
    side_files: SideFiles | None = None,
    averaged: bool = False,
) -> None:
    """Write a checkpoint that computes what a base computes with adapters; base and adapters stay as they are.

    A changed weight is added up in float32 and rounded once, to the type that is written. Rows go over a stretch at a
    time; what is held whole are the adapters.

    Args:
        base: HF folder in either layout, Megatron checkpoint, or run.
        adapters: PEFT folders, checkpoints or runs that trained an adapter of this base.
        target: folder to create.
        weights: factor of each adapter's change; by default 1 each.
        form: `hf` or `mcore`; by default that of the base.
        overwrite: replace a folder of the same kind that is there.
        refuse_non_finite: refuse weights that are NaN or infinite; a type that is too small makes them so.
        dtype: `bf16`, `fp32` or `fp16`; by default every tensor as the base has it.
        layout: `original` or `native`, of an HF folder; by default the base's.
        memory_limit: bytes above the interpreter and the adapters, at most: `2GiB`.
        max_shard_size: bytes of a file of weights: `5GB`.
        verify: compare what is read with checksums.
        side_files: as in `to_hf.write_hf`.
        averaged: take of every adapter the moving average (EMA) of what its run has learned.

    Raises:
        ConfigError: no checkpoint, no adapter, or options that do not go together.
        CheckpointError: an adapter is of another base, which is named with both fingerprints, of other shapes, or
            without an average where that is asked for; something is damaged. Nothing is written.
    """
    options = Options(
        overwrite, refuse_non_finite, dtype, memory_limit, max_shard_size, layout if form != "mcore" else None, verify
    )
    factors = list(weights) or [1.0] * len(adapters)
    if len(factors) != len(adapters):
        raise ConfigError(f"--weights: factors given: {len(factors)}, adapters: {len(adapters)}; give one for each")
    source = _open(base, "BASE", verify)
    form = form or ("hf" if source.is_hf else "mcore")
    if form == "mcore" and layout is not None:
        raise ConfigError(f"--layout {layout}: a Megatron checkpoint has none; it goes with --to hf")
    opened = [open_adapter(path, source.model, "ADAPTER", verify, averaged) for path in adapters]
    for adapter in opened:
        check_is_base(adapter, source)
    merged = merged_source(source, list(zip(opened, factors, strict=True)), options.wanted_dtype)
    stated = read_config(source.hf)
    config = merged_config(trained_config(source.folder), opened)
    if (growth := merged.growth) is not None:
        config, side_files = grown_config(config, growth), grown_beside(growth, merged.files, side_files)
    changed = None if config == stated else config
    if form == "hf":
        write_hf(merged, target, options, "merging", changed, True, side_files)
    else:
        write_megatron(merged, target, options, "merging", changed, side_files)


def merged_config(config: dict[str, Any], adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Return the `config.json` of a base with adapters: positions, template and tiles as they were trained.

    Raises:
        ConfigError: two adapters were trained with other ones; both are named.
    """
    stated = [(adapter, loadable(stated_by(config, adapter.trained, adapter.source))) for adapter in adapters]
    known = [(adapter, one) for adapter, one in stated if adapter.trained]
    for adapter, one in known[1:]:
        if one != known[0][1]:
            names = sorted(name for name in {*one, *known[0][1]} if one.get(name) != known[0][1].get(name))
            raise ConfigError(
                f"{known[0][0].source} and {adapter.source} were trained with other settings ({', '.join(names)}); "
                "together they have none: use one at a time"
            )
    return known[0][1] if known else loadable(config)


def export_adapter(
    source: Path,
    target: Path,
    *,
    layout: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
    averaged: bool = False,
    dtype: str | None = None,
    side_files: SideFiles | None = None,
) -> None:
    """Write the adapter of a run, of a PEFT folder or of an unmerged folder of the published code as a PEFT folder.

    Args:
        source: a checkpoint or a run that trained an adapter, or an HF folder that holds one among its weights.
        target: folder to create.
        layout: `original` or `native`: whose modules it is for; by default those of the base.
        overwrite: replace a PEFT folder that is there.
        verify: compare what is read with checksums.
        averaged: take the moving average (EMA) of what a run has learned.
        dtype: `bf16`, `fp32` or `fp16`; by default every tensor as it is.
        side_files: as in `to_hf.write_hf`; of an adapter with new tokens it writes the tokenizer of the other layout.

    Raises:
        ConfigError: there is no adapter.
        CheckpointError: it is damaged, holds no average where that is asked for, values that are too large for
            `dtype`, or a part in full that PEFT has no form for. Nothing is written.
    """
    wanted = Options(dtype=dtype).wanted_dtype
    adapter, model, own = open_own(source, verify, averaged)
    layout = layout or own
    rows = adapter.rows
    if rows is None or rows.tokenizer is None or layout == own or side_files is None:
        write_peft(adapter, model, target, layout, overwrite=overwrite, dtype=wanted)
        return
    with TemporaryDirectory() as folder:
        copy_other_files(rows.tokenizer, Path(folder))
        config = for_folder(trained_config(find_checkpoint(source, "SOURCE").folder), layout, rows.tokenizer)
        (Path(folder) / CONFIG).write_text(to_text(config), encoding="utf-8")
        side_files(rows.tokenizer, Path(folder), layout, config)
        adapter = replace(adapter, rows=replace(rows, tokenizer=Path(folder)))
        write_peft(adapter, model, target, layout, overwrite=overwrite, dtype=wanted)


def _open(path: Path, said: str, verify: bool) -> OpenSource:
    """Open the base that a user has named."""
    place = find_checkpoint(path, said)
    if is_adapter(place.folder):
        raise ConfigError(
            f"{said} {printable(path)}: a run that trained an adapter; name its base first, and it as ADAPTER"
        )
    source = open_hf(place.folder) if place.is_hf else open_megatron(place.folder, verify)
    check_side_files(source.hf, source.model.llm.vocab_size)
    return source
