"""What a dry run prints below the settings, as YAML comments: what was found, and what the run would take.

Memory of a rank, ranks, packs of a step and an epoch need the `config.json` of the checkpoint and no weights, and
neither a GPU nor the ranks: how many cards a length takes is answered on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.device.cards import card_named
from megatron_v2pe.errors import ConfigError, V2PEError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.memory import GIB, RESERVE
from megatron_v2pe.train.epochs import packs_of_epoch, steps_left
from megatron_v2pe.train.header import layout_words, parameter_words, some
from megatron_v2pe.train.memory import MemoryBudget, in_words, least_packs, packs_per_step, shortage_foreseen
from megatron_v2pe.train.preflight.findings import Findings

ASSUMED_CARD = 80
"""GiB of the card that is planned for where nothing says which."""
_USABLE = 0.989
"""Share of what a card is sold with that programs see: an H100 of 80 GB shows 79.1 GiB."""
MOST_COUNTED = 2_000
"""Samples of an epoch whose packs are counted; of a longer indexed set a lower bound is given."""


def report(found: Findings, ranks: int | None, card: str | None) -> str:
    """Return the report, every line of it a YAML comment.

    Args:
        found: what was found of the run, whose settings are checked for its ranks.
        ranks: number of ranks; None: as few as the layout takes.
        card: GiB, or the name of a card; None: that of this machine, or one of 80 GiB.

    Raises:
        ConfigError: ranks that do not fit the layout, a card that is not known.
    """
    config = found.config
    memory, source = card_bytes(card, config.train.device)
    world = ranks or config.parallel.model_parallel_size
    lines = list(found.lines())
    try:
        if found.model is None:
            lines.append("no estimate of memory: it needs the checkpoint's config.json")
        elif config.adapter.is_on and found.adapters is None:
            lines.append("no estimate of memory: it needs the adapters, which are refused")
        else:
            budget = MemoryBudget(config, found.model, world, memory, found.adapters)
            lines += _lines(budget, ranks is not None, source, found)
    except ConfigError as error:  # a layout that does not fit the model is among the problems already
        lines.append(f"no estimate of memory: {error}")
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


def _comment(lines: list[str]) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for text in lines for line in printable_lines(text))


def printable_lines(text: str) -> list[str]:
    """Return a text's lines as they may be shown; none of them ends a comment."""
    return [printable(line) for line in text.splitlines()] or [""]


def _lines(budget: MemoryBudget, stated: bool, source: str, found: Findings) -> Iterator[str]:
    config, load = budget.config, budget.load
    fewest = "" if stated else "; --ranks says another number"
    yield f"the model: {parameter_words(budget.model, budget.learning)}"
    yield f"{some(budget.world_size, 'rank')}: {layout_words(config.parallel, budget.world_size)}{fewest}"
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
    yield f"a step: {some(packs, 'pack')}, {most}"
    yield from _epoch(budget, packs, found)


def _table(budget: MemoryBudget) -> Iterator[str]:
    names = ("weights", "gradients", "optimizer", "kept", "working", "reserve", "total")
    yield "  stage " + "".join(f"{name:>11}" for name in names) + "   worst moment"
    for stage in range(budget.stages):
        found = budget.estimate(stage, budget.plans[stage])
        reserve = RESERVE if budget.card is not None else 0
        numbers = [found.weights, found.gradients, found.optimizer, found.kept, found.working]
        numbers += [reserve, found.total + reserve]
        yield f"  {stage:<6}" + "".join(f"{number / GIB:>11.2f}" for number in numbers) + f"   {found.moment}"
    yield "  kept: activations from forward to backward; reserve: the GPU's own context, libraries, communicators"


def _epoch(budget: MemoryBudget, per_step: int, found: Findings) -> Iterator[str]:
    """Yield packs and steps of an epoch, and how many epochs the run is, or steps its epochs take."""
    config, encoder, held = budget.config, found.encoder, budget.config.validation.hold_out
    if "the data" in found.unseen or found.problems:
        yield "an epoch: not counted, see above"
        return
    try:
        packs = None if encoder is None else packs_of_epoch(config.data, encoder, MOST_COUNTED, 20, held)
        least = ""
        if packs is None and config.data.indexed_path:
            counts = IndexedSamples(config.data.indexed_path).manifest.counts
            packs, least = least_packs(counts["tokens"], counts["tiles"], budget), "at least "
        if packs is None:
            yield (
                "an epoch: not counted; a data list is counted where there is a tokenizer and an epoch has up to "
                f"{MOST_COUNTED:,} samples; `tools/preprocess_data.py` makes an indexed set of it, which knows"
            )
            return
        if not packs:
            yield "an epoch: none of its samples can be used"
            return
        steps, run = -(-packs // per_step), config.train.train_steps
        epoch = f"an epoch: {least}{some(packs, 'pack')}, {some(steps, 'step')}"
        if config.train.epochs is None:
            about = "" if config.data.indexed_path else "about "  # packs of a list reach over an epoch's end
            yield f"{epoch}; {some(run, 'step')} {'is' if run == 1 else 'are'} {about}{run / steps:.2f} epochs"
        elif least or encoder is None:
            yield f"{epoch}; {config.train.epochs:g} epochs are counted when the run starts"
        else:
            epochs, state = config.train.epochs, found.loader_state
            left = steps_left(config.data, epochs, encoder, per_step, state, hold_out=held)
            done = f", {found.iteration:,} of them done" if found.iteration else ""
            yield f"{epoch}; {config.train.epochs:g} epochs are {some(found.iteration + left, 'step')}{done}"
    except (V2PEError, OSError) as error:
        if config.train.epochs is not None:  # the run counts its epochs at its start
            found.problems.append(error)
        yield f"an epoch: {error}"
