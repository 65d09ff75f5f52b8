"""Part (b): every layout gives the loss and every gradient of one process, several ranks on one card under NCCL.

The cases are those of `tests/parallel/test_parity.py`: a small InternVL2 with an odd vocabulary, packs of several
documents with and without images, drop path off. Here they run in float32 and bfloat16 on the card, whose kernels need
heads of at least 8 numbers. On the CPU the same cases run with gloo, fewer of them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from gpu_checks.outcome import Outcome
from helpers import parity
from helpers.packs import random_packs
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config
from megatron_v2pe.workshop.worker_pool import WorkerError, WorkerPool

ONE = ParallelConfig(use_distributed_optimizer=False)
TP2 = replace(ONE, tensor_model_parallel_size=2)
CP2 = replace(ONE, context_parallel_size=2)
LAYOUTS: dict[str, ParallelConfig] = {
    "TP2": TP2,
    "TP2 + SP": replace(TP2, sequence_parallel=True),
    "CP2 ring": CP2,
    "CP2 all-to-all": replace(CP2, cp_comm_type="a2a"),
    "PP2": replace(ONE, pipeline_model_parallel_size=2),
    "DP2 overlapped": ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True),
    "TP2, replicated towers": replace(TP2, vision_parallel="replicated"),
    "CP4 ring": replace(CP2, context_parallel_size=4),
    "CP4 all-to-all": replace(CP2, context_parallel_size=4, cp_comm_type="a2a"),
    "TP2 x CP2": replace(CP2, tensor_model_parallel_size=2),
    "TP2 x CP2 + SP, replicated towers": replace(
        CP2, tensor_model_parallel_size=2, sequence_parallel=True, vision_parallel="replicated"
    ),
}
PACKS = {"with images": "mixed", "one without images": "text_only_last"}
SMALL = (("TP2 + SP", "with images", torch.float32), ("CP2 ring", "with images", torch.bfloat16))
"""What runs on the CPU."""
TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"loss": 1e-5, "gradients": 2e-4},
    torch.bfloat16: {"loss": 5e-3, "gradients": 0.2},
}
"""Relative errors allowed beside one process of the same type, of a gradient's entries beside its largest. With gloo on
the CPU the largest over all cases were 9e-8 and 3.9e-6 in float32, 6e-4 and 0.077 in bfloat16."""
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
IMAGE_TOKEN = 505
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
OPTIONS: dict[str, Any] = {**RECOMPUTE, "keep_attention": True, "recompute_vision": True}


def run(device: str) -> Outcome:
    """Compare the layouts; all of them on CUDA, two on the CPU."""
    outcome, config = Outcome(), hf_config()
    pools = {size: WorkerPool(size, 180 if device == "cpu" else 60, device) for size in (1, 2, 4)}
    policy = StridePolicy("v2pe_fix", 1)
    try:
        weights = pools[1].run(parity.random_weights, hf_config=config)[0]
        single: dict[tuple[str, torch.dtype], Any] = {}
        for name, packs, dtype in _cases(device):
            case = parity.Case(
                hf_config=config,
                layout=ONE,
                packs=random_packs(config, policy, PACKS[packs]),
                weights=weights,
                image_token_id=IMAGE_TOKEN,
                policy=policy,
                dtype=dtype,
                options=OPTIONS,
                device=device,
            )
            if (packs, dtype) not in single:
                single[packs, dtype] = pools[1].run(parity.run, case=case)[0]
            layout = LAYOUTS[name]
            ranks = max(2, layout.model_parallel_size)
            what = f"{name}, packs {packs}, {TYPES[dtype]}"
            try:
                found = pools[ranks].run(parity.run, case=replace(case, layout=layout))[0]
            except WorkerError as error:  # the pool starts anew
                outcome.must(False, f"{what}: {str(error)[-800:]}")
                continue
            _judge(outcome, what, ranks, single[packs, dtype], found, dtype)
    finally:
        for pool in pools.values():
            pool.close()
    if device == "cpu":
        outcome.remarks.append(f"on the CPU {len(SMALL)} of {len(_cases('cuda'))} cases run, with gloo")
    return outcome


def _cases(device: str) -> list[tuple[str, str, torch.dtype]]:
    if device == "cpu":
        return list(SMALL)
    return [
        (name, packs, dtype)
        for dtype in TOLERANCE
        for packs in PACKS
        for name in LAYOUTS
        if dtype == torch.float32 or packs == "with images"  # time: what packs without images need is no matter of type
    ]


def _judge(outcome: Outcome, what: str, ranks: int, one: Any, found: Any, dtype: torch.dtype) -> None:
    errors = parity.compare(one, found)
    numbers = {name: errors[name] for name in ("loss", "gradients")}
    outcome.add(what, ranks=ranks, loss=found.loss, **{f"{name} error": error for name, error in numbers.items()})
    for name, error in numbers.items():
        allowed = TOLERANCE[dtype][name]
        where = f" (worst: {errors['worst_gradient']})" if name == "gradients" else ""
        outcome.must(error <= allowed, f"{what}: {name} {error:.1e} from one process, allowed {allowed:.0e}{where}")


def hf_config() -> dict[str, Any]:
    """Return the small model: 4 layers, 8 heads of 16 in 4 groups, a tower of 3 layers, tiles of 4 tokens."""
    config = copy.deepcopy(internvl2_2b_config())
    config["force_image_size"] = 56
    config["llm_config"] |= {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "vocab_size": 509,
        "max_position_embeddings": 256,
    }
    config["vision_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "image_size": 56,
    }
    return config
