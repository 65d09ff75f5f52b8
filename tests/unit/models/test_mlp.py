"""The MLP as one operation: the plain formula in any chunks, what is kept, gradients in order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from megatron_v2pe.models import mlp as module_under_test
from megatron_v2pe.models.linear import ColumnLinear, RowLinear, WeightGradient
from megatron_v2pe.models.mlp import run_mlp

ROWS, HIDDEN, WIDTH = 22, 6, 10
ERROR = 1e-13
"""Relative, in float64; measured 2e-15."""


def linear(kind, outputs, inputs, bias):
    """A linear of one rank, without Megatron-Core's groups."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    generator = torch.Generator().manual_seed(outputs * inputs)
    made.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator, dtype=torch.float64))
    made.bias = nn.Parameter(torch.randn(outputs, generator=generator, dtype=torch.float64)) if bias else None
    made.tp_group, made.sequence_parallel, made.gradient_accumulation_fusion = None, False, False
    return made


def layer(kind):
    gated = kind == "swiglu"
    config = SimpleNamespace(gated_linear_unit=gated, activation_func_clamp_value=None, glu_linear_offset=0.0)
    first = linear(ColumnLinear, WIDTH * (2 if gated else 1), HIDDEN, not gated)
    second = linear(RowLinear, HIDDEN, WIDTH, not gated)
    activation = F.silu if gated else F.gelu
    return SimpleNamespace(linear_fc1=first, linear_fc2=second, activation_func=activation, config=config)


def formula(mlp, states):
    joint = F.linear(states, mlp.linear_fc1.weight, mlp.linear_fc1.bias)
    if mlp.config.gated_linear_unit:
        gate, straight = joint.chunk(2, -1)
        joint = F.silu(gate) * straight
    else:
        joint = F.gelu(joint)
    return F.linear(joint, mlp.linear_fc2.weight)


def states():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(ROWS // 2, 2, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()


def parameters(mlp):
    return [p for p in (mlp.linear_fc1.weight, mlp.linear_fc1.bias, mlp.linear_fc2.weight) if p is not None]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 4, 7, ROWS, 1000])
@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_it_is_the_formula(kind, chunk, recomputed, monkeypatch):
    monkeypatch.setattr(module_under_test, "is_checkpointing", lambda: recomputed)
    mlp, some = layer(kind), states()
    found, bias = run_mlp(mlp, some, chunk)
    assert bias is mlp.linear_fc2.bias
    expected = formula(mlp, some)
    gradient = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view(expected.shape)
    leaves = [some, *parameters(mlp)]
    pairs = [(found, expected)]
    pairs += zip(*(torch.autograd.grad(r, leaves, gradient) for r in (found, expected)), strict=True)
    for ours, plain in pairs:
        assert ours.shape == plain.shape
        assert ((ours - plain).abs().max() / plain.abs().max()).item() <= ERROR


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_a_result_nobody_reads_is_not_formed(kind, chunk):
    """Its gradients are those of the formula; forward, there are no products, and nothing but the input is kept."""
    mlp, some = layer(kind), states()
    with FlopCounterMode(display=False) as forward:
        found, _ = run_mlp(mlp, some, chunk, needed=False)
    assert forward.get_total_flops() == 0 and not found.any() and found.shape == some.shape
    leaves = [some, *parameters(mlp)]
    gradient = torch.linspace(-1, 2, some.numel(), dtype=torch.float64).view(some.shape)
    with FlopCounterMode(display=False) as backward:
        ours = torch.autograd.grad(found, leaves, gradient)
    assert backward.get_total_flops() == 2 * ROWS * HIDDEN * WIDTH * (8 if kind == "swiglu" else 5)
    plain = torch.autograd.grad(formula(mlp, some), leaves, gradient)
    assert all(((a - b).abs().max() / b.abs().max()).item() <= ERROR for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("frozen", ["linear_fc1", "linear_fc2", "states"])
def test_frozen_parts(frozen):
    mlp, some = layer("gelu"), states()
    if frozen == "states":
        some = some.detach()
    else:
        getattr(mlp, frozen).requires_grad_(False)
    leaves = [leaf for leaf in (some, *parameters(mlp)) if leaf.requires_grad]
    ours = torch.autograd.grad(run_mlp(mlp, some, 5)[0].sum(), leaves)
    plain = torch.autograd.grad(formula(mlp, some).sum(), leaves)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize(
    ("chunk", "recomputed", "kept"),
    [
        (None, False, ROWS * 2 * WIDTH),
        (4, False, ROWS * 2 * WIDTH),  # kept layers keep the first product, whatever the chunks
        (8, True, ROWS * 2 * WIDTH),  # three chunks: affordable
        (4, True, 0),  # six: formed again
    ],
)
def test_what_is_kept(chunk, recomputed, kept, monkeypatch):
    """Nothing but the input, the weights, and of the widest activation what is stated."""
    monkeypatch.setattr(module_under_test, "is_checkpointing", lambda: recomputed)
    mlp, some = layer("swiglu"), states()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t):
        run_mlp(mlp, some, chunk)
    assert sum(sizes) == some.numel() + sum(parameter.numel() for parameter in parameters(mlp)) + kept
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda tensor: 1 / 0, lambda t: t):
        run_mlp(mlp, some, chunk)


@pytest.mark.parametrize("chunk", [None, 4])
def test_gradients_are_collected_in_the_buffer(chunk):
    mlp = layer("gelu")
    weights = mlp.linear_fc1.weight, mlp.linear_fc2.weight
    expected = torch.autograd.grad(formula(mlp, states()).sum(), weights)
    for module in (mlp.linear_fc1, mlp.linear_fc2):
        module.gradient_accumulation_fusion = True
        module.weight.main_grad = torch.zeros_like(module.weight)
        module.weight.grad_added_to_main_grad = False
    for _ in range(2):  # two micro-batches
        run_mlp(mlp, states(), chunk)[0].sum().backward()
    for weight, gradient in zip(weights, expected, strict=True):
        assert weight.grad_added_to_main_grad and weight.grad.shape == weight.shape
        assert torch.allclose(weight.main_grad, 2 * gradient, rtol=1e-12, atol=1e-12)


def test_a_buffer_is_used_only_where_it_is_asked_for():
    weight = nn.Parameter(torch.zeros(3, 2))
    weight.main_grad = torch.zeros(3, 2)  # type: ignore[attr-defined]
    collected = WeightGradient(weight, False, 1)
    collected.add(torch.ones(4, 3), torch.ones(4, 2))
    assert torch.equal(collected.result(), torch.full((3, 2), 4.0)) and not weight.main_grad.any()
    assert not hasattr(weight, "grad_added_to_main_grad")


def test_several_parts_of_bf16_are_collected_in_float32():
    weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.bfloat16))
    collected = WeightGradient(weight, False, 600)
    for _ in range(600):
        collected.add(torch.ones(1, 1).bfloat16(), torch.ones(1, 1).bfloat16())
    assert collected.result().item() == 600  # bf16 would have stayed at 256


def test_gradients_arrive_last_used_first():
    mlp, arrived = layer("gelu"), []
    names = {"fc1.weight": mlp.linear_fc1.weight, "fc1.bias": mlp.linear_fc1.bias, "fc2.weight": mlp.linear_fc2.weight}
    for name, parameter in names.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    run_mlp(mlp, states(), 4)[0].sum().backward()
    assert arrived == ["fc2.weight", "fc1.bias", "fc1.weight"]


def test_hooks_that_wait_for_weights_are_run():
    mlp, ran = layer("swiglu"), []
    for name in ("linear_fc1", "linear_fc2"):
        getattr(mlp, name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    run_mlp(mlp, states(), None)
    assert ran == ["linear_fc1", "linear_fc2"]


def test_another_activation_is_left_to_megatron_core():
    class Other(SimpleNamespace):
        def __call__(self, hidden):
            return hidden, "its own"

    mlp = layer("gelu")
    mlp = Other(**{**vars(mlp), "activation_func": F.relu})
    assert run_mlp(mlp, states(), 4)[1] == "its own"
