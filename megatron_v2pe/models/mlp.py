"""The MLP of a layer as one operation: first product, activation, second product, in chunks of tokens.

Between the two products lies the widest activation of the model, 4 GiB for 130,000 tokens of InternVL2-2B in bf16,
and Megatron-Core's MLP holds three or four of that size. Here it exists for a chunk of tokens at a time. What is kept
for the backward pass is the first product's result alone, from which one pass gives the activation again together with
its gradient; for a long sequence in a layer that is recomputed anyway not even that, and it is formed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel.random import is_checkpointing
from megatron.core.transformer.mlp import MLP
from torch import Tensor, nn

from megatron_v2pe.kernels.gelu import gelu, gelu_backward
from megatron_v2pe.kernels.swiglu import swiglu_backward, swiglu_forward
from megatron_v2pe.models.fusion import fire_forward_hooks, in_turn
from megatron_v2pe.models.linear import ColumnLinear, RowLinear, Split, WeightGradient, product

_CHUNKS_KEPT = 4
"""A recomputed layer keeps the first product of up to so many chunks while it goes back: at most 2 GiB of 16,384
tokens each in InternVL2-2B. Beyond, the product is formed once more, a seventh of the layer's MLP."""

Backward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""(gradient of the activation [n, f], first product) to the activation, the product's gradient, and its sum over rows
where that comes with it."""


@dataclass(frozen=True)
class _How:
    """What `_Mlp` does, beside its tensors."""

    forward: Callable[[Tensor], Tensor]
    backward: Backward
    split: Split
    chunk: int
    """Rows at a time."""
    needed: bool
    """Form the result; without it, nothing is done forward."""
    keep: bool
    """Keep the first product."""
    weights: tuple[nn.Parameter, nn.Parameter]
    in_place: tuple[bool, bool]


def run_mlp(mlp: MLP, states: Tensor, chunk_tokens: int | None, needed: bool = True) -> tuple[Tensor, Tensor | None]:
    """Run Megatron-Core's MLP with fewer passes over memory; same results, parameters and collectives.

    Args:
        mlp: of a layer. One that is not SwiGLU or exact GELU between our linears is called as it is; between linears
            with adapters it works on all rows at once.
        states: [s, b, hidden], normed; under sequence parallelism this rank's slice.
        chunk_tokens: rows (tokens, or tokens times tiles) worked on at a time; None for all.
        needed: False where the result's gradient comes and its value is not read: at the end of what is recomputed.
            Zeros are returned, and the second product and its reduction are left out.

    Returns:
        [s, b, hidden], and a bias [hidden] still to be added, or None.
    """
    activation = _activation(mlp)
    if activation is None:
        return mlp(states)
    first: Any = mlp.linear_fc1
    second: Any = mlp.linear_fc2
    if first.linear_adapter is not None or second.linear_adapter is not None:
        return _adapted(first, second, states, activation)
    for linear in (first, second):
        fire_forward_hooks(linear)  # they are not called, and what waits for gathered weights is a hook of theirs
    split = Split.of(first)
    rows = states.shape[:-1].numel() * (split.group.size() if split.group and split.sequence_parallel else 1)
    chunk = min(chunk_tokens or rows, rows) or 1
    grad = torch.is_grad_enabled()
    recomputed = grad and is_checkpointing()
    how = _How(
        *activation,
        split,
        chunk,
        needed,
        needed and grad and not (recomputed and rows > _CHUNKS_KEPT * chunk),
        (first.weight, second.weight),
        (first.gradient_accumulation_fusion, second.gradient_accumulation_fusion),
    )
    parameters = [in_turn(parameter) for parameter in (first.weight, first.bias, second.weight)]
    return _Mlp.apply(states, *parameters, how), second.bias


def _activation(mlp: MLP) -> tuple[Callable[[Tensor], Tensor], Backward] | None:
    config = mlp.config
    first, second = mlp.linear_fc1, mlp.linear_fc2
    ours = type(first) is ColumnLinear and type(second) is RowLinear
    plain = config.activation_func_clamp_value is None and not config.glu_linear_offset
    if ours and config.gated_linear_unit and mlp.activation_func is F.silu and plain:
        return swiglu_forward, lambda gradient, joint: (*swiglu_backward(gradient, joint), None)
    if ours and not config.gated_linear_unit and mlp.activation_func is F.gelu:
        return gelu, gelu_backward
    return None


def _adapted(
    first: Any, second: Any, states: Tensor, activation: tuple[Callable[[Tensor], Tensor], Backward]
) -> tuple[Tensor, Tensor | None]:
    """Run an MLP operation by operation; its adapters' linears keep what their factors' gradients need."""
    joint, bias = first(states)
    joint = joint if bias is None else joint + bias
    return second(_Activation.apply(joint, *activation))


class _Activation(torch.autograd.Function):
    """Keeps the first product alone."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, forward: Callable[[Tensor], Tensor], backward: Backward) -> Tensor:
        ctx.save_for_backward(joint)
        ctx.backward_of = backward
        return forward(joint.flatten(0, -2)).unflatten(0, joint.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (joint,) = ctx.saved_tensors
        _, result, _ = ctx.backward_of(gradient.flatten(0, -2), joint.flatten(0, -2))
        return result.view(joint.shape), None, None


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, first: Tensor, first_bias: Tensor | None, second: Tensor, how: _How
    ) -> Tensor:
        ctx.how = how
        if not how.needed:
            ctx.save_for_backward(states, first, first_bias, second)
            return states.new_zeros(()).expand(*states.shape[:-1], second.shape[0])
        total, gathered = how.split.gather(states)
        if gathered is not None:
            gathered.wait()
        rows = total.flatten(0, -2)
        result = rows.new_empty(rows.shape[0], second.shape[0])
        joints = []
        for part, target in zip(rows.split(how.chunk), result.split(how.chunk), strict=True):
            joint = product(part, first, first_bias)
            torch.mm(how.forward(joint), second.t(), out=target)
            if how.keep:
                joints.append(joint)
        ctx.save_for_backward(states, first, first_bias, second, *joints)
        result = result.view(*total.shape[:-1], -1)
        return _reduced(result, how.split)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        states, first, first_bias, second, *joints = ctx.saved_tensors
        how: _How = ctx.how
        for_states, for_first, for_bias, for_second, _ = ctx.needs_input_grad
        whole_gradient, gradient_gathered = how.split.gather(gradient)
        needed = for_first or not joints
        total, gathered = how.split.gather(states) if needed else (whole_gradient, None)
        for work in (gradient_gathered, gathered):
            if work is not None:
                work.wait()
        rows = total.flatten(0, -2)
        parts = list(zip(rows.split(how.chunk), whole_gradient.flatten(0, -2).split(how.chunk), strict=True))
        states_gradient = torch.empty_like(whole_gradient, memory_format=torch.contiguous_format)
        targets = states_gradient.flatten(0, -2).split(how.chunk)
        collected = [
            WeightGradient(weight, in_place, len(parts))
            for weight, in_place in zip(how.weights, how.in_place, strict=True)
        ]
        bias_gradient: Tensor | None = None
        pending: list[dist.Work | None] = []
        for number, (part, part_gradient) in enumerate(parts):
            joint = joints[number] if joints else product(part, first, first_bias)
            activated, joint_gradient, sums = how.backward(part_gradient @ second, joint)
            if for_second:
                collected[1].add(part_gradient, activated)
            del activated, joint
            if for_states:
                torch.mm(joint_gradient, first, out=targets[number])
                if number + 1 == len(parts):  # travels while the last weight gradient is formed
                    states_gradient, work = how.split.reduce(states_gradient)
                    pending.append(work)
            if for_first:
                collected[0].add(joint_gradient, part)
            if for_bias:
                sums = joint_gradient.sum(0) if sums is None else sums
                bias_gradient = sums if bias_gradient is None else bias_gradient + sums
            del joint_gradient, sums  # or they would lie beside the next chunk's
        for work in pending:
            if work is not None:
                work.wait()
        return (
            states_gradient if for_states else None,
            collected[0].result() if for_first else None,
            None if bias_gradient is None else bias_gradient.to(first.dtype),
            collected[1].result() if for_second else None,
            None,
        )


def _reduced(result: Tensor, split: Split) -> Tensor:
    """Sum the ranks' partial results; under sequence parallelism each keeps its slice of the sum."""
    if split.group is None:
        return result
    if not split.sequence_parallel:
        dist.all_reduce(result, group=split.group)
        return result
    part = result.new_empty(result.shape[0] // split.group.size(), *result.shape[1:])
    dist.reduce_scatter_tensor(part, result, group=split.group)
    return part
