"""Floating-point operations of one step as PyTorch's own counter sees them, operation by operation.

The counter looks at shapes of matrix products, whoever asks for them; it knows nothing of the model. Runs inside a
`WorkerPool`, on one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import parity
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.workshop.built_model import built

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Counted:
    """Operations of one step."""

    products: float
    """Matrix products and convolutions."""
    causal: float
    """Attention under a causal mask, half of the whole square."""
    full: float
    """Attention without a mask."""


def count(case: parity.Case) -> Counted:
    """Run forward and backward of the first pack of a case and count; nothing may be recomputed."""
    attention = {True: 0.0, False: 0.0}

    def forward(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
        attention[causal] += _operations(query, key, causal)
        return 0

    def backward(gradient: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, dropout: float, causal: bool,
                 **_: Any) -> int:  # fmt: skip
        attention[causal] += 2 * _operations(query, key, causal)
        return 0

    options = ModelOptions(params_dtype=torch.float32, **case.options)
    with built(case.hf_config, case.layout, options, case.policy, case.image_token_id) as model:
        parity.freeze_parts(model, case)
        batch = parity.micro_batch(case, 0, model)
        counter = FlopCounterMode(display=False, custom_mapping={_FLASH: forward, _FLASH_BACKWARD: backward})
        with counter:
            model.train()(batch=batch).backward()
    return Counted(counter.get_total_flops(), attention[True], attention[False])


def _operations(query: Any, key: Any, causal: bool) -> float:
    """4 x length x length x width of all heads, half of it under a mask; shapes [b, heads, length, d]."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[2] * width * (0.5 if causal else 1.0)
