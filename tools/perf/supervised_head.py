"""What the loss head costs when a few tokens of a long document are supervised, beside a head over all of them."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import torch.nn.functional as F

from megatron_v2pe.models.head import Targets
from megatron_v2pe.workshop.measuring.tensor_memory import TensorMemory
from perf._training import Shape, Step, cores, model_of
from perf._training import run as run_step

DESCRIPTION = "the loss head on supervised tokens only: memory by length, share of a step, beside the full head"


def run(argv: list[str]) -> dict[str, Any]:
    """Measure the head alone and within a step; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py supervised_head", description=DESCRIPTION)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768, 262144], help="(default: %(default)s)")
    parser.add_argument("--dense-up-to", type=int, default=4096, help="longest for the heads over all tokens")
    parser.add_argument("--step-tokens", type=int, default=4096, help="length of the training step")
    parser.add_argument("--supervised", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=92553, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    shape = Shape(layers=4, heads=8, groups=4, vocab=arguments.vocab)
    pool = WorkerPool(1, 1800)
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    try:
        for tokens in arguments.tokens:
            for kind in ("supervised", "all, chunked", "all, dense"):
                if kind == "supervised" or tokens <= arguments.dense_up_to:
                    count = arguments.supervised if kind == "supervised" else tokens
                    rows.append(pool.run(head_alone, shape=shape, tokens=tokens, count=count, kind=kind)[0])
        for supervised in (arguments.supervised, arguments.step_tokens - 1):
            step = Step(shape, ((arguments.step_tokens, 0),), supervised, cores_per_process=2, repeats=2)
            found = pool.run(run_step, step=step)[0]
            steps.append(
                {
                    "supervised": supervised,
                    "step s": round(found.seconds, 2),
                    "head s": round(found.head_seconds, 3),
                    "head share": round(found.head_seconds / found.seconds, 4),
                }
            )
    finally:
        pool.close()
    return {
        "model": str(shape),
        "head alone": rows,
        "MiB": "made by forward and backward beyond hidden states, weight and their gradients",
        f"steps of {arguments.step_tokens} tokens": steps,
    }


def head_alone(shape: Shape, tokens: int, count: int, kind: str) -> dict[str, Any]:
    """Forward and backward of one head over random hidden states; `count` of them are supervised."""
    with cores(2), model_of(Step(shape, (), 0)) as model:
        head, width = model.language_model, 64 * shape.heads
        hidden = torch.randn(tokens, 1, width, requires_grad=True)
        labels = torch.full((tokens,), -100)
        labels[tokens - count :] = torch.arange(count) % shape.vocab
        targets = Targets.from_labels(labels, torch.ones(tokens))
        memory, began = TensorMemory(), time.perf_counter()
        with memory:
            if kind == "all, dense":
                logits = hidden.squeeze(1) @ head.output_layer.weight[: shape.vocab].t()
                loss = F.cross_entropy(logits.float(), labels, reduction="sum")
                del logits
            else:
                loss = head.loss_sums(hidden, targets).total
            torch.autograd.grad(loss, (hidden, head.output_layer.weight))
        seconds = time.perf_counter() - began
        gradients = hidden.numel() + head.output_layer.weight.numel()
        return {
            "tokens": tokens,
            "head": kind,
            "supervised": count,
            "MiB": round((memory.peak - 4 * gradients) / 2**20, 1),
            "s": round(seconds, 3),
        }
