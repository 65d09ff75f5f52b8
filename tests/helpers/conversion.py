"""Whole tensors of a checkpoint folder as a model of any layout loads them (inside a `WorkerPool`); a planted break."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_v2pe.checkpoint.hf.mappings import Interleaved, RowRun
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


def swap_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted break: queries and keys of a tensor with all queries, all keys, all values change places in the table."""
    right = Interleaved.runs

    def swapped(self: Interleaved, rows: int) -> Iterator[RowRun]:
        third, other = rows // 3, {0: 1, 1: 0, 2: 2}
        for run in right(self, rows):
            assert run.hf_row is not None
            moved = other[run.hf_row // third] * third + run.hf_row % third
            yield replace(run, hf_row=moved if len(self.parts) == 3 else run.hf_row)

    monkeypatch.setattr(Interleaved, "runs", swapped)
