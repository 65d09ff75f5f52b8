"""AdamW and its schedule, built by Megatron-Core, with the published recipe's conventions.

The reference decays every trainable tensor, norms, biases and embeddings included; that stays the default and has a
switch. The learning rate of step s (0-based) is `lr * s / warmup` while s < warmup, then a cosine down to `min_lr`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.train.config import AdamWConfig


def build_optimizer(
    model: DistributedDataParallel,
    settings: AdamWConfig,
    params_dtype: torch.dtype,
    use_distributed_optimizer: bool,
    overlap_param_gather: bool,
    groups: ProcessGroupCollection,
) -> MegatronOptimizer:
    """Build AdamW over the trainable parameters of a wrapped stage, with float32 master weights under bf16."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=settings.clip_grad,
        bf16=params_dtype == torch.bfloat16,
        params_dtype=params_dtype,
        use_distributed_optimizer=use_distributed_optimizer,
        overlap_param_gather=overlap_param_gather,
    )
    overrides = _weight_decay_overrides(settings)
    return get_megatron_optimizer(config, [model], overrides, use_gloo_process_groups=False, pg_collection=groups)


def _weight_decay_overrides(settings: AdamWConfig) -> dict[ParamKey, ParamGroupOverride]:
    if settings.weight_decay_on_all:
        return {}
    one_dimensional = ParamPredicate(name="one_dimensional", fn=lambda parameter: parameter.dim() <= 1)
    return {ParamKey(name="*.bias", predicate=one_dimensional): cast(ParamGroupOverride, {"wd_mult": 0.0})}


def take_step(optimizer: MegatronOptimizer) -> float:
    """Update the parameters; return the norm of the gradients before clipping, 0 where it is not clipped."""
    _, grad_norm, _ = cast(Any, optimizer).step()  # the base class states no result
    return float(grad_norm or 0.0)


def apply_settings(optimizer: MegatronOptimizer, settings: AdamWConfig) -> None:
    """Let the run's learning rates win over those a loaded checkpoint was trained with."""
    for group in optimizer.param_groups:
        group["max_lr"], group["min_lr"] = settings.lr, settings.min_lr


def build_scheduler(optimizer: MegatronOptimizer, settings: AdamWConfig, train_steps: int) -> OptimizerParamScheduler:
    """Build the learning-rate schedule over `train_steps` steps."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=min(settings.warmup_steps(train_steps), train_steps - 1),
        lr_decay_steps=train_steps,
        lr_decay_style=settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=train_steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
    )
