"""Part (e): transformers' InternVL of the same shape on the same device: a training step, and `generate`."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch

from gpu_checks.generation import CASES, NEW
from gpu_checks.model import Size, size_for
from gpu_checks.outcome import Outcome
from megatron_v2pe.device.device import Device
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.workshop.worker_pool import WorkerPool
from perf._training import Shape
from perf.step_beside_transformers import Published, Task, theirs

GIB = 2**30
TASKS = {
    "cuda": Task(Published(), 33375, 130, 93, "cuda", "bf16", recompute=True, repeats=3),
    "cpu": Task(Shape(1, 2, 1, 512, 1, 1), 300, 1, 10, "cpu", "fp32", recompute=True, repeats=1),
}
"""Their training step: the document of part (c), with gradient checkpointing, without which it does not fit."""

GENERATED = {"cuda": ((1, 2048), (8, 2048)), "cpu": CASES["cpu"][:2]}
"""Answers at once, tokens of each prompt."""


def run(kind: str) -> Outcome:
    """Measure both; what is compared with them stands in the other parts of the same run."""
    outcome, size, device = Outcome(), size_for(kind), Device(kind)
    _generation(outcome, size, device)
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()
    _training(outcome, TASKS[kind])
    if kind == "cpu":
        outcome.remarks.append("small models in fp32; the rates say nothing about a GPU")
    return outcome


def _generation(outcome: Outcome, size: Size, device: Device) -> None:
    """Greedy `generate` of the text model alone: images are prefill, which is text to it."""
    peer, count = text_model(size, device), NEW[device.kind]
    for answers, tokens in GENERATED[device.kind]:
        ids = torch.randint(3, size.vocabulary - 10, (answers, tokens), generator=torch.Generator().manual_seed(0))
        ids = ids.to(device.torch_device)
        runs: dict[int, list[float]] = {1: [], count + 1: []}
        for _ in range(3):  # the first warms up
            for new, seconds in runs.items():
                device.synchronize()
                began = time.perf_counter()
                said = peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                )
                device.synchronize()
                seconds.append(time.perf_counter() - began)
                outcome.must(said.shape == (answers, tokens + new), f"generate gave {tuple(said.shape)} tokens")
        first, whole = (min(seconds[1:]) for seconds in runs.values())
        outcome.add(
            f"transformers, {answers} at once behind {tokens} tokens",
            **{"prefill s": first, "decode tokens/s": answers * count / max(whole - first, 1e-9)},
        )


def _training(outcome: Outcome, task: Task) -> None:
    pool = WorkerPool(1, 600, task.device)
    try:
        found = pool.run(theirs, task=task)[0]
    finally:
        pool.close()
    cost = StepCost.of(InternVLConfig.from_hf(task.shape.hf_config()))
    flop = cost.flop(task.tokens, task.tokens**2, task.tiles, task.supervised)
    outcome.add(
        f"transformers, step of {task.tokens} tokens, {task.tiles} tiles",
        **{
            "s": found.seconds,
            "TFLOP/s": flop / found.seconds / 1e12,
            "peak GiB": found.peak_bytes / GIB,
            "loss": found.loss,
        },
    )


def text_model(size: Size, device: Device) -> Any:
    """Return transformers' Llama of the decoder's shape with made-up weights, drawn on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llm = size.hf_config["llm_config"]
    shape = {
        name: llm[name]
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
    }
    config = LlamaConfig(**shape, max_position_embeddings=1 << 18, tie_word_embeddings=False)
    with torch.device(device.torch_device):
        model: Any = LlamaForCausalLM(config)
    return model.to(size.dtype).eval()
