"""LoRA on a small model of the parity tests: which linears, and factors whose every number matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from helpers import parity
from megatron_v2pe.checkpoint.hf.adapter_rows import chosen, linears_of
from megatron_v2pe.models.adapter_targets import PARTS
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.lora import put_adapters
from megatron_v2pe.models.lora_plan import LowRank, LowRankPlan
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full


def plan_of(case: parity.Case, targets: Sequence[str], division: str = "split", **settings: float) -> LowRankPlan:
    """Return LoRA of rank 3 on the targets of a case's model."""
    return plan_of_config(case.hf_config, targets, division, **settings)


def plan_of_config(
    hf_config: dict[str, Any], targets: Sequence[str], division: str = "auto", **settings: float
) -> LowRankPlan:
    """Return LoRA on the targets of a model."""
    linears = linears_of(InternVLConfig.from_hf(hf_config), "original", division)
    found = {name: tuple(row.piece for row in rows) for name, rows in chosen(linears, targets).items()}
    low_rank = LowRank(**{"rank": 3, "alpha": 6.0, **settings})  # type: ignore[arg-type]
    return LowRankPlan(found, dict.fromkeys(PARTS, low_rank), seed=7)


def drawn(case: parity.Case) -> dict[str, Tensor]:
    """Return the factors as a run draws them, by checkpoint key; runs on every rank of the case's layout."""
    assert case.adapters is not None
    options = ModelOptions(params_dtype=case.dtype)
    made = built(
        case.hf_config, case.layout, options, case.policy, case.image_token_id, partial(put_adapters, case.adapters)
    )
    with made as model:
        full = gather_full(model, lambda parameter: parameter.detach())
    return {key: value for key, value in full.items() if ".adapter." in key}


def with_factors(case: parity.Case, factors: dict[str, Tensor]) -> parity.Case:
    """Return a case with these factors among its weights, `lora_B` of random numbers in place of zeros."""
    generator = torch.Generator().manual_seed(11)
    random = {
        key: 0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64) if "lora_B" in key else value
        for key, value in factors.items()
    }
    return replace(case, weights={**case.weights, **random})


def merged_logits(case: parity.Case) -> list[Tensor]:
    """Return the logits of every pack with the adapters put into the weights; runs on every rank."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.models.linear import ColumnLinear, RowLinear
    from megatron_v2pe.train.ddp import wrap

    assert case.adapters is not None
    options = ModelOptions(params_dtype=case.dtype)
    made = built(
        case.hf_config, case.layout, options, case.policy, case.image_token_id, partial(put_adapters, case.adapters)
    )
    with made as model:
        load_full(model, case.weights)
        for module in model.modules():
            if isinstance(module, (ColumnLinear, RowLinear)) and module.linear_adapter is not None:
                module.weight.detach().copy_(module.forward_weight())
                del module._modules["adapter"]
        groups = ProcessGroupCollection.use_mpu_process_groups()
        wrapped = wrap(model, case.layout, groups, torch.device("cpu"))
        return parity._logits(wrapped, [parity.micro_batch(case, number, model) for number in range(len(case.packs))])
