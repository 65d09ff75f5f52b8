"""What a run would take, before it is started: memory of a rank, ranks, packs of a step and an epoch, as YAML comments.

Needs the `config.json` of the checkpoint and no weights, and neither a GPU nor the ranks: how many cards a length takes
is answered on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_v2pe.checkpoint.folder import HF_FOLDER, newest
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.skip import SkipLog
from megatron_v2pe.device.cards import card_named
from megatron_v2pe.errors import ConfigError, V2PEError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.memory import GIB, RESERVE
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.memory import Budget, in_words, least_packs, packs_per_step, shortage_foreseen

ASSUMED_CARD = 80
"""GiB of the card that is planned for where nothing says which."""
_USABLE = 0.989
"""Share of what a card is sold with that programs see: an H100 of 80 GB shows 79.1 GiB."""
_PLANNED_SAMPLES = 2_000_000
"""Up to so many the packs of an epoch are planned and counted; of more a lower bound is given at once."""


def report(config: ExperimentConfig, ranks: int | None, card: str | None) -> str:
    """Return the report, every line of it a YAML comment.

    Args:
        config: of the run, validated by itself.
        ranks: of the run; None: as few as the layout takes.
        card: GiB, or the name of a card; None: that of this machine, or one of 80 GiB.

    Raises:
        ConfigError: ranks that do not fit the layout, a card that is not known.
    """
    memory, source = card_bytes(card, config.train.device)
    world = ranks or config.parallel.model_parallel_size
    config.validate(world)
    try:
        model = InternVLConfig.from_folder(_config_folder(config.model.model_name_or_path))
    except (V2PEError, OSError) as error:
        return _comment([f"no estimate of memory: {error}"])
    lines = list(_lines(Budget(config, model, world, memory), ranks is not None, source))
    return _comment(lines)


def card_bytes(card: str | None, device: str = "auto") -> tuple[int | None, str]:
    """Return the memory a card shows, and where the number comes from; None for a run on the CPU.

    Raises:
        ConfigError: neither a number of GiB nor the name of a card in the table.
    """
    if card is None:
        if device == "cpu":
            return None, "on the CPU"
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            return properties.total_memory, f"of {properties.name}"
        return int(ASSUMED_CARD * _USABLE * GIB), f"of a card of {ASSUMED_CARD} GiB (no GPU here; --card says another)"
    try:
        size = float(card)
    except ValueError:
        known = card_named(card)
        if known is None:
            raise ConfigError(f"--card {printable(card)[:80]}: no card of that name is known; give its GiB") from None
        return int(known.memory_gib * _USABLE * GIB), f"of {printable(card)[:80]}"
    if not 1 <= size <= 10_000:
        raise ConfigError(f"--card {printable(card)[:80]}: expected GiB between 1 and 10000, or the name of a card")
    return int(size * _USABLE * GIB), f"of a card of {size:g} GiB"


def _config_folder(name: str) -> Path:
    """Return the folder of a checkpoint's `config.json`: the HF folder's own, a Megatron checkpoint's, a run's."""
    path = Path(name)
    for folder in (path, path / HF_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    checkpoint = newest(path) if path.is_dir() else None
    return path if checkpoint is None else checkpoint / HF_FOLDER


def _comment(lines: list[str]) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for text in lines for line in printable_lines(text))


def printable_lines(text: str) -> list[str]:
    """Return a text's lines as they may be shown; none of them ends a comment."""
    return [printable(line) for line in text.splitlines()] or [""]


def _lines(budget: Budget, stated: bool, source: str) -> Iterator[str]:
    config, load = budget.config, budget.load
    fewest = "" if stated else "; --ranks says another number"
    yield f"{budget.world_size} ranks: {_layout(config.parallel, budget.world_size)}{fewest}"
    yield (
        f"memory of a rank in GiB, estimated, at the pack's budget of {load.tokens:,} tokens and {load.tiles:,} tiles, "
        f"{config.train.precision}:"
    )
    yield from _table(budget)
    if budget.card is not None:
        yield f"the card: {budget.card / GIB:.1f} GiB, {source}"
    for stage in range(budget.stages):
        yield in_words(budget, stage)
        if (warning := shortage_foreseen(budget, stage)) is not None:
            yield warning
    packs = packs_per_step(budget)
    most = f"at most {packs * load.tokens:,} tokens and {packs * load.tiles:,} tiles"
    yield f"a step: {packs} pack{'s' if packs > 1 else ''}, {most}"
    yield from _epoch(budget, packs)


def _layout(layout: ParallelConfig, world: int) -> str:
    degrees = [
        ("data parallel", layout.data_parallel_size(world)),
        ("context parallel", layout.context_parallel_size),
        ("tensor parallel", layout.tensor_model_parallel_size),
        ("pipeline stages", layout.pipeline_model_parallel_size),
    ]
    return " x ".join(f"{count} {name}" for name, count in degrees if count > 1 or name == "data parallel")


def _table(budget: Budget) -> Iterator[str]:
    names = ("weights", "gradients", "optimizer", "kept", "working", "reserve", "total")
    yield "  stage " + "".join(f"{name:>11}" for name in names) + "   worst moment"
    for stage in range(budget.stages):
        found = budget.estimate(stage, budget.plans[stage])
        reserve = RESERVE if budget.card is not None else 0
        numbers = [found.weights, found.gradients, found.optimizer, found.kept, found.working]
        numbers += [reserve, found.total + reserve]
        yield f"  {stage:<6}" + "".join(f"{number / GIB:>11.2f}" for number in numbers) + f"   {found.moment}"
    yield "  kept: activations from forward to backward; reserve: the GPU's own context, libraries, communicators"


def _epoch(budget: Budget, per_step: int) -> Iterator[str]:
    config = budget.config
    if not config.data.indexed_path:
        yield "an epoch: not known of a data list; `tools/preprocess_data.py` makes an indexed set of it, which knows"
        return
    try:
        samples = IndexedSamples(config.data.indexed_path)
        counts = samples.manifest.counts
        if counts["samples"] <= _PLANNED_SAMPLES:
            plan = IndexedPlan(samples, config.data, config.train.seed, SkipLog(0, quiet=True))
            packs, least = sum(1 for _ in plan.epoch(0)), ""
        else:
            packs, least = least_packs(counts["tokens"], counts["tiles"], budget), "at least "
    except (V2PEError, OSError) as error:
        yield f"an epoch: {error}"
        return
    steps = -(-packs // per_step)
    run = config.train.train_steps
    yield f"an epoch: {least}{packs:,} packs, {steps:,} steps; {run:,} steps are {run / steps:.2f} epochs"
