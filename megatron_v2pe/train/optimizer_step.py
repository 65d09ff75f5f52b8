"""How the optimizer of a run and its schedule are built by Megatron-Core, and how a step clips and updates.

Which optimizers and schedules there are stands in `optimizers/`; what all of them share is here.

The reference decays every trainable tensor, norms, biases and embeddings included; that stays the default and has a
switch. The learning rate of step s (0-based) is `lr * s / warmup` while s < warmup, then a cosine down to `min_lr`.
Parts of the model may have rates and decays of their own (`optimizers/parts.py`); the shape of the schedule is one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, nn

from megatron_v2pe.checkpoint.weight_average import WeightAverage
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.train.new_rows import has_new_rows
from megatron_v2pe.train.optimizers import parts
from megatron_v2pe.train.optimizers.settings import SCHEDULES, OptimizerSettings


class GradientParts(Protocol):
    """Says to which part of a model the gradients of an optimizer belong."""

    @property
    def count(self) -> int:
        """Return how many parts there are."""
        ...

    def membership(self, optimizer: MegatronOptimizer, gradients: Sequence[Tensor], device: torch.device) -> Tensor:
        """Return float32 [parts, gradients]: 1 where a gradient belongs to a part, 0 elsewhere."""
        ...


_FUSED_ADAM_NEEDS = frozenset(
    ("master_weight_dtype", "exp_avg_dtype", "exp_avg_sq_dtype", "use_decoupled_grad", "store_param_remainders")
)
"""Arguments of Transformer Engine's FusedAdam with which Megatron-Core keeps state in other types than float32."""
FUSED_ON = ("cuda",)
"""Devices on which an optimizer that can (`OptimizerSettings.runs_fused`) runs as one kernel."""


def build_optimizer(
    model: DistributedDataParallel,
    settings: OptimizerSettings,
    params_dtype: torch.dtype,
    use_distributed_optimizer: bool,
    overlap_param_gather: bool,
    groups: ProcessGroupCollection,
) -> MegatronOptimizer:
    """Build the optimizer of a run over the trainable parameters of a wrapped stage.

    Under bf16 it has float32 master weights.

    Args:
        model: this rank's wrapped stage.
        settings: which optimizer, and its settings.
        params_dtype: type of the parameters.
        use_distributed_optimizer: shard its state over the data parallel ranks.
        overlap_param_gather: gather parameters while the next forward pass runs.
        groups: process groups.

    Raises:
        ConfigError: a part has a learning rate or a weight decay of its own, and nothing of it learns on any rank.
    """
    config = OptimizerConfig(
        **settings.megatron_settings(),
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        clip_grad=settings.clip_grad,
        bf16=params_dtype == torch.bfloat16,
        params_dtype=params_dtype,
        use_distributed_optimizer=use_distributed_optimizer,
        overlap_param_gather=overlap_param_gather,
    )
    sizes: InternVLConfig = cast(Any, get_attr_wrapped_model(model, "internvl"))
    tower_layers = sizes.vision.num_layers
    _check_parts(model, settings)
    made = settings.build(config, model, overrides_of(model, settings, tower_layers), groups)
    _number_by_type(made)
    _fuse(made, settings)
    if settings.ema_decay is not None:
        WeightAverage(made, model, settings.ema_decay)
    return made


def _number_by_type(optimizer: MegatronOptimizer) -> None:
    """Mend where the distributed optimizer says that its share of a parameter stands, in groups of two types.

    Megatron-Core numbers the parameters of a group as they lie in the buffers, of which there is one for each type in
    the order of the model, but steps by those in float32 first. Where weights in bf16 learn beside adapters in float32,
    moments would be stored and loaded under the names of others.
    """
    for member in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(member, DistributedOptimizer) and not getattr(member, "is_stub_optimizer", False):
            groups = zip(member.model_fp32_groups, member.model_float16_groups, strict=True)
            for number, (wide, narrow) in enumerate(groups):
                for order, parameter in enumerate([*wide, *narrow]):
                    member.model_param_group_index_map[parameter] = number, order


def check_precision_aware(switch: str, on_cuda: bool) -> None:
    """Check that state of fewer bytes can be kept, before anything is loaded.

    Args:
        switch: setting that asks for it, for the message.
        on_cuda: the run is on a GPU.

    Raises:
        ConfigError: there is no GPU, or no FusedAdam of Transformer Engine that can; says what to install.
    """
    if not on_cuda:
        raise ConfigError(f"{switch} needs a GPU, but this run is on the CPU")
    try:
        fused = import_module("transformer_engine.pytorch.optimizers").FusedAdam
        arguments = set(inspect.signature(fused).parameters)
    except ImportError:
        arguments = set()
    if missing := _FUSED_ADAM_NEEDS - arguments:
        lacking = f"one without {', '.join(sorted(missing))} is" if arguments else "none is"
        raise ConfigError(
            f"{switch} needs FusedAdam of Transformer Engine 2.1 or newer, and {lacking} installed here: pip install "
            "--no-build-isolation 'transformer_engine[pytorch]>=2.1' where CUDA's compiler is, or unset it; "
            "optimizer.optimizer_cpu_offload saves more memory on the card without it"
        )


def _fuse(optimizer: MegatronOptimizer, settings: OptimizerSettings) -> None:
    """Have PyTorch's optimizer update parameters on a GPU in one pass, where its settings say that it can.

    By itself AdamW takes lists of tensors through one operation after the other, with a copy of all second moments
    among the results: 4 bytes of a parameter more than a step needs, 8 GiB for InternVL2-2B on one rank.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if inner is not None and settings.runs_fused(inner):
            parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
            if parameters and all(parameter.device.type in FUSED_ON for parameter in parameters):
                for group in inner.param_groups:  # a stage may lack the parameters of some groups
                    group["fused"] = True


def _check_parts(model: nn.Module, settings: OptimizerSettings) -> None:
    """Refuse settings of a part of which nothing learns on any rank; without such settings nothing is exchanged."""
    if not parts.are_stated(settings):
        return
    mine = {parts.part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    there = torch.tensor([float(part in mine) for part in parts.PARTS], device=torch.cuda.current_device())
    dist.all_reduce(there)
    parts.check_parts(settings, (part for part, count in zip(parts.PARTS, there.tolist(), strict=True) if count))


def overrides_of(
    model: nn.Module, settings: OptimizerSettings, tower_layers: int
) -> dict[ParamKey, ParamGroupOverride]:
    """Return which parameters have another learning rate or weight decay than the run's, as Megatron-Core takes it.

    Megatron-Core makes a group of the parameters that share an override, and has the same groups on all ranks.

    Args:
        model: this rank's stage.
        settings: of the optimizer.
        tower_layers: layers of the whole tower.
    """
    named: dict[parts.Rate, set[str]] = {}
    for name, parameter in model.named_parameters():
        rate = parts.rate_of(settings, name, parameter.dim(), tower_layers)
        if has_new_rows(parameter):  # decay would move the rows that do not learn
            rate = replace(rate, weight_decay=0.0)
        named.setdefault(rate, set()).add(name)
    overrides: dict[ParamKey, ParamGroupOverride] = {}
    for number, (rate, names) in enumerate(named.items()):
        if override := _override(settings, rate):
            chosen = ParamWithNamePredicate(str(number), lambda _, name, names=names: name in names)
            overrides[ParamKey(with_name_predicate=chosen)] = cast(ParamGroupOverride, override)
    return overrides


def _override(settings: OptimizerSettings, rate: parts.Rate) -> dict[str, float]:
    """Return what a group says that its scheduler would not give it by itself."""
    override = dict[str, float]()
    if rate.max_lr != settings.lr:
        override |= {"max_lr": rate.max_lr, "min_lr": rate.min_lr}
    if rate.weight_decay == 0:
        return override | ({"wd_mult": 0.0} if settings.weight_decay else {})
    if rate.weight_decay != settings.weight_decay:
        override |= {"start_wd": rate.weight_decay, "end_wd": rate.weight_decay}
    return override


@torch.no_grad()
def measure_gradients(optimizer: MegatronOptimizer, parts: GradientParts | None = None) -> Tensor:
    """Make the gradients ready for an update, and return their norms without reading anything back.

    Args:
        optimizer: of the run.
        parts: says to which part of the model a gradient belongs.

    Returns:
        float64 [1 + number of parts] on the device of the gradients: the norm of all of them before clipping, and of
        those of each part.
    """
    found_inf = optimizer.prepare_grads()
    assert not found_inf, "only a loss scale looks for infinities here, and there is none"
    return gradient_norms(getattr(optimizer, "chained_optimizers", [optimizer]), parts)


@torch.no_grad()
def update(optimizer: MegatronOptimizer, norm: Tensor) -> None:
    """Clip gradients that `measure_gradients` has made ready, and update the parameters, as Megatron-Core does.

    Megatron-Core reads the norm to decide about clipping, and without Transformer Engine and Apex that of every
    parameter (`local_multi_tensor_l2_norm`). Here norm and factor stay where the gradients are, with the same numbers.

    Args:
        optimizer: of the run.
        norm: norm of all gradients, float64 of no dimension.
    """
    parts: Sequence[Any] = getattr(optimizer, "chained_optimizers", [optimizer])
    limit = parts[0].config.clip_grad
    if limit > 0:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradients in _by_device(gradient for part in parts for gradient in _gradients(part)):
            torch._foreach_mul_(gradients, factor.to(gradients[0]))
    optimizer.step_with_ready_grads()


def take_step(optimizer: MegatronOptimizer) -> Tensor:
    """Clip the gradients and update the parameters, whatever the gradients are; return their norm before clipping.

    The loop calls `measure_gradients` and `update` apart, and looks at the norm between them.
    """
    norm = measure_gradients(optimizer)[0]
    update(optimizer, norm)
    return norm


def _gradients(optimizer: Any) -> list[Tensor]:
    """Return what an optimizer is about to step by."""
    apart = getattr(optimizer.config, "use_precision_aware_optimizer_no_fp8_or_ds_fp8", False)
    found = (
        getattr(parameter, "decoupled_grad" if apart else "grad", None) for parameter in optimizer.get_parameters()
    )
    return [gradient for gradient in found if gradient is not None]


def _by_device(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Return gradients in lists of one device each: an optimizer may keep some of them on the host."""
    lists: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        lists.setdefault(gradient.device, []).append(gradient)
    return lists.values()


def gradient_norms(optimizers: Sequence[MegatronOptimizer], parts: GradientParts | None = None) -> Tensor:
    """Return the norm of all gradients as one vector, and of those of each part; every rank calls this.

    What several ranks hold alike counts once. It is the root of a sum in float32, as Megatron-Core's.

    Args:
        optimizers: the members of the run's optimizer.
        parts: says to which part of the model a gradient belongs; None: no parts.

    Returns:
        float64 [1 + number of parts] on the device of the gradients.
    """
    squares: dict[Any, Tensor] = {}
    size = 1 if parts is None else 1 + parts.count
    for optimizer in optimizers:
        gradients, group = optimizer.get_main_grads_for_grad_norm(), optimizer.get_grad_stats_parallel_group()
        if group not in squares:
            squares[group] = torch.zeros(size, dtype=torch.float32, device=torch.cuda.current_device())
        for some in _by_device(gradients):
            lengths = torch.stack(torch._foreach_norm(some)).to(squares[group])
            squares[group][0] += torch.linalg.vector_norm(lengths) ** 2
            if parts is not None:
                squares[group][1:] += parts.membership(optimizer, some, lengths.device) @ lengths**2
    for group, square in squares.items():
        dist.all_reduce(square, group=group)
    return torch.stack(list(squares.values())).to(torch.float64).sum(0).sqrt()


def build_scheduler(
    optimizer: MegatronOptimizer, settings: OptimizerSettings, train_steps: int
) -> OptimizerParamScheduler:
    """Build the learning-rate schedule over `train_steps` steps."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=min(settings.steps_of_warmup(train_steps), train_steps - 1),
        **{"lr_decay_steps": train_steps, **SCHEDULES.get(settings.lr_decay_style)(settings, train_steps)},
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=train_steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
    )
