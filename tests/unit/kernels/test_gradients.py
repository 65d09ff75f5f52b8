"""A weight's gradient added to the buffer that collects it: the number, the way, and what happens without that way."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.kernels import gradients

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("target_type", "type_", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-14),
        (torch.float32, torch.float32, 1e-6),
        (
            torch.float32,
            torch.bfloat16,
            5e-3,
        ),  # measured 3e-3 on the CPU, where the product is rounded before it is added
        (torch.bfloat16, torch.bfloat16, 2e-2),
    ],
)
def test_a_product_is_added(device, target_type, type_, tolerance):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 5, generator=generator).to(device, target_type)
    gradient, states = (torch.randn(40, n, generator=generator).to(device, type_) for n in (6, 5))
    target = start.clone()
    gradients.add_product(target, gradient, states)
    expected = start.double() + gradient.double().t() @ states.double()
    assert ((target.double() - expected).abs().max() / expected.abs().max()).item() <= tolerance
    assert (target - start).abs().max() > 1  # the product alone, or the target alone, would not pass


@pytest.mark.gpu
def test_a_card_writes_float32():
    """On CUDA with a PyTorch that can, the sum is that of unrounded products: better than bf16 could hold."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not gradients._writes_float32(torch.device("cuda"), torch.bfloat16):
        pytest.skip("this PyTorch has no addmm from bf16 into float32")
    gradient, states = torch.randn(2, 512, 256, device="cuda").bfloat16()
    target = torch.zeros(256, 256, device="cuda")
    gradients.add_product(target, gradient, states)
    expected = gradient.double().t() @ states.double()
    assert ((target - expected).abs().max() / expected.abs().max()).item() < 1e-5


def test_a_pytorch_that_refuses_is_asked_once(monkeypatch):
    asked = []

    def refuse(*_):
        asked.append(True)
        raise RuntimeError("self and mat2 must have the same dtype")

    monkeypatch.setattr(gradients, "_add_wide", refuse)
    gradients._writes_float32.cache_clear()
    assert not gradients._writes_float32(torch.device("cpu"), torch.bfloat16)
    assert not gradients._writes_float32(torch.device("cpu"), torch.bfloat16)
    assert len(asked) == 1
    gradients._writes_float32.cache_clear()


def test_a_pytorch_that_forgets_the_target_is_not_believed(monkeypatch):
    monkeypatch.setattr(gradients, "_add_wide", lambda target, a, b: target.copy_(a.t().float() @ b.float()))
    gradients._writes_float32.cache_clear()
    assert not gradients._writes_float32(torch.device("cpu"), torch.bfloat16)
    gradients._writes_float32.cache_clear()
