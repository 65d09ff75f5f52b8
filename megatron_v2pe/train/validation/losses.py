"""The validation loss of a model, by data set and over all: the same number in every layout, nothing else changed.

The sums of the head (`models/head.py`) and the counts of the feed (`train/data_counts.py`) are those of training, by
data set: weights of tokens are its weights (`data/loss_weights.py`). Each rank adds up in float64 what it has computed,
and one exchange adds up all ranks. The model is in evaluation mode and no gradient is formed, so that neither dropout
nor drop path nor a gradient buffer takes part; modes and generators are afterwards what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.micro_batch import PackCutter, PixelSettings
from megatron_v2pe.train.data_counts import DataCounts
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.step import run_micro_batches
from megatron_v2pe.train.step_ahead import StepDataReader


@dataclass(frozen=True)
class ValidationLosses:
    """What a validation has found."""

    by_set: dict[str, float]
    """Loss of each data set with supervised tokens."""
    loss: float | None
    """Loss over all; None where nothing is supervised."""
    tokens: int
    """Tokens of all packs."""
    samples: int
    """Samples of all packs."""


def validation_losses(
    model: nn.Module,
    feed: DataFeed,
    names: Sequence[str],
    packs: int,
    cutter: PackCutter,
    pixels: PixelSettings,
    at_a_time: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> ValidationLosses | None:
    """Compute the validation loss; every rank calls this.

    Args:
        model: this rank's wrapped pipeline stage, its weights complete.
        feed: gives the packs of this rank's copy of the model, and counts by data set.
        names: names of the data sets.
        packs: packs of this rank's copy of the model; all copies have as many, a multiple of `at_a_time`.
        cutter: makes this rank's share of a pack.
        pixels: what tiles become on the device.
        at_a_time: packs that go through the pipeline together.
        tell: is called with the packs of this rank that are done, and how many there are.
        is_asked_to_stop: whether this rank has been asked to stop.

    Returns:
        The losses; None, on every rank, where one has been asked to stop meanwhile: what the feed gives next is then
        the middle of a validation.

    Raises:
        DataError: the data cannot be read; on every rank.
    """
    assert packs % at_a_time == 0
    device, rounds = next(model.parameters()).device, packs // at_a_time
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    drawn, ended_well = DataCounts.nothing(names), False
    reader = StepDataReader(feed, cutter, pixels, at_a_time, _no_draws)
    try:
        with _only_looking(model, device):
            for number in range(rounds):
                tell(number * at_a_time, packs)
                if _is_any(is_asked_to_stop(), device):
                    ended_well = True
                    return None
                data = reader.take(number, more=number + 1 < rounds)
                drawn = drawn + data.totals.drawn
                batches = data.micro_batches()
                sums += run_micro_batches(model, batches, at_a_time, 1.0, forward_only=True, num_sets=len(names))[1:]
        ended_well = True
    finally:
        reader.close(ended_well)
    dist.all_reduce(sums)
    weights, losses = drawn.figure("weight"), sums.tolist()
    by_set = {name: loss / weight for name, loss, weight in zip(names, losses, weights, strict=True) if weight > 0}
    whole = sum(losses) / sum(weights) if by_set else None
    return ValidationLosses(by_set, whole, int(sum(drawn.figure("tokens"))), int(sum(drawn.figure("samples"))))


def _is_any(asked: bool, device: torch.device) -> bool:
    """Return whether any rank has been asked; every rank calls this."""
    count = torch.tensor(float(asked), device=device)
    dist.all_reduce(count)
    return count.item() > 0


def _no_draws(step: int, index: int) -> DropPathKey:
    """Name draws that a model in evaluation mode does not make."""
    return DropPathKey(0, 0)


@contextmanager
def _only_looking(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients; modes and generators are put back, memory is given back."""
    modes = [(module, module.training) for module in model.modules()]
    cards = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=cards), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        if device.type == "cuda":
            torch.cuda.empty_cache()
