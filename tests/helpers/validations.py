"""The validation of a run in any layout inside of a `WorkerPool`: what it finds, and what it leaves as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from torch import nn

from megatron_v2pe.checkpoint import store
from megatron_v2pe.data.validation_sets import ValidationPlan
from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.kernels.tiles import normalise_tiles
from megatron_v2pe.models.micro_batch import TensorPack
from megatron_v2pe.parallel import topology
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli, setup
from megatron_v2pe.train.ddp import wrap
from megatron_v2pe.train.training_run import TrainingRun
from megatron_v2pe.train.validation import losses as losses_module
from megatron_v2pe.train.validation.opening import open_sets, open_validation, open_validation_data


@dataclass
class Validated:
    """What a validation gave on a rank, twice in a row."""

    values: list[dict[str, float]]
    packs: int
    """Packs over all ranks, the empty ones not counted."""
    changed: list[str]
    """What is not as it was before, by name."""
    stopped: bool
    """Whether a third time is left where the last rank is asked to stop."""


def _opened(words: Sequence[str]) -> TrainingRun:
    rank, size = dist.get_rank(), dist.get_world_size()
    config = cli.read_command(words, RECIPES, size).config
    return setup.prepare(config, launch.World(rank, rank, size), Device.choose("cpu", 0))


def validate(words: Sequence[str], planted: str | None = None) -> Validated:
    """Validate the checkpoint that a command line names, twice.

    Args:
        words: command line of a run.
        planted: a fault of `BREAKS`.
    """
    run = _opened(words)
    try:
        model = setup.build_stage(run)
        store.load_model(run.start, model, False)
        wrapped = wrap(model, run.config.parallel, run.groups, torch.device("cpu"))
        wrapped.train()
        model.language_model.eval()  # a run may freeze a part and keep it in this mode
        with BREAKS[planted]() if planted else nullcontext():
            validation = open_validation(run, open_validation_data(run), wrapped, setup.cutter_of(run), None)
            before = _state(wrapped)
            values = [validation.losses(number) for number in range(2)]
            after = _state(wrapped)
            validation.is_asked_to_stop = lambda: dist.get_rank() == dist.get_world_size() - 1
            stopped = validation.losses(2) is None
        changed = [name for name, value in before.items() if after[name] != value]
        return Validated([found for found in values if found is not None], len(validation.plan.packs), changed, stopped)
    finally:
        topology.destroy()


def by_hand(words: Sequence[str], power: float) -> dict[str, float]:
    """Return the losses of a validation on one process, by another way: every sample alone, from its logits.

    Args:
        words: command line of a run.
        power: the weight of each of a sample's x supervised tokens is x to this power.
    """
    run = _opened(words)
    try:
        model = setup.build_stage(run)
        store.load_model(run.start, model, False)
        model.eval()
        cutter, found, totals = setup.cutter_of(run), dict[str, float](), [0.0, 0.0]
        for one in open_sets(run.config, run.encoder):
            loss, weight = 0.0, 0.0
            for number in range(len(one)):
                nll = _token_losses(model, run, cutter, one, number)
                share = len(nll) ** power
                loss, weight = loss + share * nll.sum().item(), weight + share * len(nll)
            found[f"validation/loss/{one.name}"] = loss / weight
            totals = [totals[0] + loss, totals[1] + weight]
        return {"validation/loss": totals[0] / totals[1], **found}
    finally:
        topology.destroy()


def _token_losses(model: Any, run: TrainingRun, cutter: Any, one: Any, number: int) -> torch.Tensor:
    """Return the cross-entropy of every supervised token of a sample, float64."""
    from megatron_v2pe.data.image_operations import NORMALISATION
    from megatron_v2pe.data.image_tiles import read_tiles

    document = one.document(number)
    mean_std = NORMALISATION[run.config.data.normalize_type]
    tiles = read_tiles(document.pictures, run.facts.tile_size, mean_std[0], document.key, one.open_picture)
    pixels = normalise_tiles(tiles, *mean_std, torch.float32) if len(tiles) else None
    counts = [count for _, count in document.images]
    pack = TensorPack(
        document.input_ids, document.position_ticks, [document.num_tokens], num_tiles=counts, tiles=pixels
    )
    with torch.no_grad():
        logits = model(cutter.cut(pack)).double()
    rows = (document.labels[1:] != -100).nonzero().squeeze(1)
    return F.cross_entropy(logits[rows], document.labels[1:][rows], reduction="none")


def _state(wrapped: nn.Module) -> dict[str, Any]:
    """Return digests of all that a training step reads of a model and of generators."""
    weights, gradients = hashlib.sha256(), hashlib.sha256()
    for parameter in wrapped.parameters():
        weights.update(parameter.detach().numpy().tobytes())
        gradients.update(parameter.main_grad.numpy().tobytes())  # type: ignore[attr-defined]
    generators = tensor_parallel.get_cuda_rng_tracker()
    assert generators is not None
    tracker = generators.get_states()
    return {
        "weights": weights.hexdigest(),
        "gradients": gradients.hexdigest(),
        "gradients of autograd": [name for name, p in wrapped.named_parameters() if p.grad is not None],
        "modes": [module.training for module in wrapped.modules()],
        "generator": torch.get_rng_state().tolist(),
        "tracker": {
            name: getattr(state, "tolist", lambda state=state: str(state))() for name, state in tracker.items()
        },
    }


@contextmanager
def _every_rank_the_same() -> Any:
    """Every data-parallel rank takes the packs of the first, so that some are counted twice and others never."""
    whole = ValidationPlan.of_rank
    with mock.patch.object(ValidationPlan, "of_rank", lambda self, rank, size, count=1: whole(self, 0, size, count)):
        yield


def _in_training_mode() -> AbstractContextManager[Any]:
    """The model keeps its mode, so that drop path takes part."""
    return mock.patch.object(losses_module, "_only_looking", lambda model, device: torch.no_grad())


@contextmanager
def _modes_stay() -> Any:
    """The model is left in evaluation mode."""

    @contextmanager
    def looking(model: nn.Module, device: torch.device) -> Any:
        model.eval()
        with torch.no_grad():
            yield

    with mock.patch.object(losses_module, "_only_looking", looking):
        yield


BREAKS: dict[str, Any] = {
    "packs twice": _every_rank_the_same,
    "training mode": _in_training_mode,
    "modes stay": _modes_stay,
}
"""Faults that a test plants, by name."""
