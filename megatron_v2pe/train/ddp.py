"""A bare pipeline stage becomes what Megatron-Core trains: precision wrapper, gradient buckets, frozen parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from megatron_v2pe.models.adapters import adapters_of
from megatron_v2pe.models.linear import ColumnLinear, RowLinear
from megatron_v2pe.models.norms import PARTIAL_GRADIENT
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.new_rows import clear_other_rows


def freeze(model: InternVLModel, *, backbone: bool, llm: bool, projector: bool, unfreeze_vit_layers: int = 0) -> None:
    """Stop gradients of parts of the model; adapters learn all the same.

    Args:
        model: this rank's stage, before wrapping.
        backbone: freeze the vision tower.
        llm: freeze the language model.
        projector: freeze the projector.
        unfreeze_vit_layers: with a frozen tower, train its layers from this index on (negative counts from the end);
            0 trains none.
    """
    parts = {"vision_model": backbone, "language_model": llm, "vision_projection": projector}
    for name, frozen in parts.items():
        if frozen and hasattr(model, name):
            getattr(model, name).requires_grad_(False)
    if unfreeze_vit_layers and hasattr(model, "vision_model"):
        tower: Any = model.vision_model
        for layer in tower.decoder.layers[unfreeze_vit_layers:]:
            layer.requires_grad_(True)
    for adapter in adapters_of(model):
        adapter.requires_grad_(True)


def wrap(
    model: InternVLModel, parallel: ParallelConfig, groups: ProcessGroupCollection, device: torch.device
) -> DistributedDataParallel:
    """Move a stage to the device and wrap it for training; gradients are accumulated and reduced in float32."""
    model.to(device)
    config = model.config
    inner: nn.Module = Float16Module(config, model) if config.bf16 else model
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=config.params_dtype != torch.float64,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            use_distributed_optimizer=parallel.use_distributed_optimizer,
            bucket_size=parallel.ddp_bucket_size,
        ),
        inner,
        pg_collection=groups,
    )
    collect_in_place(model)
    config.finalize_model_grads_func = finalize_gradients
    config.no_sync_func = wrapped.no_sync if parallel.overlap_grad_reduce else None
    config.grad_scale_func = None
    if parallel.overlap_param_gather:
        config.param_sync_func = wrapped.start_param_sync
    return wrapped


def collect_in_place(model: nn.Module) -> None:
    """Let the products that give weight gradients add to the gradient buffers, of all our linears that have one.

    This is Megatron-Core's `gradient_accumulation_fusion`, without APEX. A frozen weight has no buffer; the head's
    projection is Megatron-Core's own class, and its weight's gradient comes in chunks (`models/head.py`).
    """
    for module in model.modules():
        if isinstance(module, ColumnLinear | RowLinear) and hasattr(module.weight, "main_grad"):
            module.gradient_accumulation_fusion = True


def finalize_gradients(chunks: list[Any], num_tokens: Tensor | None = None, **settings: Any) -> None:
    """Complete a step's gradients: Megatron-Core's reductions, then those of what tensor-parallel ranks saw in part.

    A whole tower on every tensor-parallel rank has seen that rank's tiles only, and a norm of queries or keys that
    rank's heads; their gradients are the sums over the ranks. Megatron-Core's count of tokens (always zero here) is not
    handed on: it would be reduced, and read by the host.
    """
    finalize_model_grads(chunks, None, **settings)
    for chunk in chunks:
        model = unwrapped(chunk)
        learning = [parameter for parameter in _seen_in_part(model) if parameter.requires_grad]
        if learning and model.pg_collection.tp.size() > 1:
            gradients: list[Tensor] = [parameter.main_grad for parameter in learning]  # type: ignore[attr-defined]
            flat = _flatten_dense_tensors(gradients)
            dist.all_reduce(flat, group=model.pg_collection.tp)
            for gradient, total in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
                gradient.copy_(total)
        clear_other_rows(model)


def _seen_in_part(model: InternVLModel) -> Iterator[nn.Parameter]:
    """Yield the parameters that tensor-parallel ranks hold alike, while each has a part of their gradients."""
    if model.coordinates.replicated_vision and model.pre_process:
        yield from model.vision_model.parameters()
        yield from model.vision_projection.parameters()
    yield from (p for p in model.language_model.parameters() if getattr(p, PARTIAL_GRADIENT, False))


def unwrapped(wrapped: nn.Module) -> InternVLModel:
    """Return the bare stage inside of what `wrap` has made."""
    model: Any = get_attr_wrapped_model(wrapped, "coordinates", return_model_obj=True)
    return model


def gather_parameters(wrapped: DistributedDataParallel) -> None:
    """Complete the last step's update on every rank, where `overlap_param_gather` leaves that to the next forward.

    Before this, a rank's weights are new only in the part whose optimizer state it holds: not what a checkpoint may
    contain.
    """
    if wrapped.ddp_config.overlap_param_gather:
        wrapped.start_param_sync(force_sync=True)
