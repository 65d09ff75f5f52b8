"""A few optimizer steps on fixed packs, saved and resumed in any layout; for use inside a `WorkerPool`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from helpers import parity, towers
from megatron_v2pe.models.lora import put_adapters
from megatron_v2pe.models.padding import paddings
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full

SETTINGS = AdamWConfig(lr=1e-2, warmup_ratio=0.0, weight_decay=0.1)
TOTAL_STEPS = 20


@dataclass
class History:
    """What a short run went through."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Whole tensors after the last step."""
    rates: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    """Learning rate and weight decay by parameter of this rank in each step, where the optimizer holds them whole."""
    averages: dict[str, torch.Tensor] = field(default_factory=dict)
    """Whole averages after the last step, by key of the weight, of a run that keeps them."""
    loader: dict[str, Any] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    """Numbers of this rank: `weights` by type, of gradient buffers, of the optimizer's state in float32."""
    padding: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """By parameter of this rank: how many of its values are padding, the largest of them after the last step, and the
    largest of their gradients in any step."""


def train_by_megatron_core(case: parity.Case, steps: int, settings: AdamWConfig = SETTINGS) -> History:
    """Train as `train` does, with the gradients clipped and the parameters updated by Megatron-Core's own step."""

    def step(optimizer: Any) -> torch.Tensor:
        return torch.tensor(optimizer.step()[1], dtype=torch.float64)

    with mock.patch("megatron_v2pe.train.optimizer_step.take_step", step):
        return train(case, steps, settings=settings)


def train(
    case: parity.Case,
    steps: int,
    save_to: str | None = None,
    resume_from: str | None = None,
    settings: AdamWConfig = SETTINGS,
) -> History:
    """Train `steps` steps of a case on this rank, from its weights or from a checkpoint, and save if asked."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.checkpoint import store
    from megatron_v2pe.checkpoint.folder import newest
    from megatron_v2pe.checkpoint.weight_average import average_of
    from megatron_v2pe.train.ddp import gather_parameters, wrap
    from megatron_v2pe.train.optimizer_step import build_optimizer, build_scheduler, take_step
    from megatron_v2pe.train.step import forward_backward

    options = ModelOptions(params_dtype=case.dtype, **case.options)
    history = History()
    layout = case.layout
    adapt = None if case.adapters is None else partial(put_adapters, case.adapters)
    with built(case.hf_config, layout, options, case.policy, case.image_token_id, adapt) as model:
        groups = ProcessGroupCollection.use_mpu_process_groups()
        load_full(model, case.weights)
        parity.freeze_parts(model, case)
        wrapped = wrap(model, layout, groups, torch.device("cpu"))
        optimizer = build_optimizer(
            wrapped, settings, case.dtype, layout.use_distributed_optimizer, layout.overlap_param_gather, groups
        )
        scheduler = build_scheduler(optimizer, settings, TOTAL_STEPS)
        first = 0
        if resume_from is not None:
            folder = newest(Path(resume_from))
            assert folder is not None
            state = store.load_training(folder, model, optimizer, learned_only=adapt is not None)
            first, history.loader = state.iteration, state.loader
            scheduler.step(increment=first)
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        denominator = sum(pack.weights.sum().item() for pack in case.packs)
        wrapped.train()
        for step in range(first, first + steps):
            # Every step deals the packs out anew, so that what a rank does changes from step to step.
            order = [(index + step) % len(case.packs) for index in range(rank, len(case.packs), size)]
            mine = [parity.micro_batch(case, index, model) for index in order]
            wrapped.zero_grad_buffer()
            optimizer.zero_grad()
            history.losses.append(forward_backward(wrapped, mine, len(mine), denominator))
            _look_at_padding(model, history, gradients=True)
            history.learning_rates.append(scheduler.get_lr({}))
            history.rates.append(_rates(model, optimizer))
            history.grad_norms.append(take_step(optimizer).item())
            scheduler.step(increment=1)
        history.held = _held(model, wrapped, optimizer)
        gather_parameters(wrapped)
        if case.planted_break == "padding":
            towers.BREAKS["padding"](model)
        _look_at_padding(model, history, gradients=False)
        if save_to is not None:
            state = store.TrainingState(first + steps, {"consumed": 17}, {})
            source, learned = Path(save_to), adapt is not None
            store.save(source, model, optimizer, state, hf_source=source, keep_latest=2, learned_only=learned)
        history.weights = gather_full(model, lambda parameter: parameter.detach())
        if (average := average_of(optimizer)) is not None:
            wholes = dict(zip(map(id, average._learning), average.wholes(), strict=True))
            history.averages = gather_full(model, lambda parameter: wholes.get(id(parameter)))
    return history


def _rates(model: Any, optimizer: Any) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay by the name of a parameter, of those that a group holds whole."""
    of = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    named = ((name, of.get(id(parameter))) for name, parameter in model.named_parameters())
    return {name: (group["lr"], group["weight_decay"]) for name, group in named if group is not None}


def _held(model: Any, wrapped: Any, optimizer: Any) -> dict[str, int]:
    """Count what a rank holds beside activations."""
    held = {"gradients": sum(buffer.grad_data.numel() for buffer in wrapped.buffers)}
    for parameter in model.parameters():
        kind = f"weights {str(parameter.dtype).removeprefix('torch.')}"
        held[kind] = held.get(kind, 0) + parameter.numel()
    state: dict[int, int] = {}
    weights = [(weight.data_ptr(), weight.data_ptr() + weight.nbytes) for weight in model.parameters()]
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        for group in inner.param_groups:
            for parameter in group["params"]:
                at = parameter.data_ptr()
                if not any(begin <= at < end or at == begin for begin, end in weights):  # a master copy, and no view
                    state[at] = parameter.numel()
        for values in inner.state.values():
            for value in values.values():
                if isinstance(value, torch.Tensor) and value.dim():
                    state[value.data_ptr()] = value.numel()
    return {**held, "optimizer": sum(state.values())}


def _look_at_padding(model: Any, history: History, gradients: bool) -> None:
    """Note the largest values of what is padding."""
    for name, parameter, padding in paddings(model):
        if gradients and not parameter.requires_grad:
            continue
        values = padding.of(parameter.main_grad if gradients else parameter.detach())  # type: ignore[attr-defined]
        largest = values.abs().max().item() if values.numel() else 0.0
        _, weight, gradient = history.padding.get(name, (0, 0.0, 0.0))
        seen = (weight, max(gradient, largest)) if gradients else (largest, gradient)
        history.padding[name] = (values.numel(), *seen)
