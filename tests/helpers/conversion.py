"""Whole tensors of a checkpoint folder as a model of any layout loads them; for use inside a `WorkerPool`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full


def load_whole(
    folder: str, hf_config: dict[str, Any], layout: ParallelConfig, dtype: torch.dtype, rank: int | None = 0
) -> dict[str, Tensor] | None:
    """Load a checkpoint folder through Megatron-Core and gather every tensor, by checkpoint key.

    Returns:
        The tensors on the given rank (None: on every rank), None on the others, which saves sending them.
    """
    import torch.distributed as dist

    from megatron_v2pe.checkpoint.store import load_model

    with built(hf_config, layout, ModelOptions(params_dtype=dtype), StridePolicy("default"), 0) as model:
        with torch.no_grad():
            for parameter in model.parameters():  # what a load leaves out shows
                parameter.fill_(float("nan"))
        load_model(Path(folder), model)
        whole = gather_full(model, lambda parameter: parameter.detach())
    return whole if rank is None or dist.get_rank() == rank else None
