"""Each short form of a layer's arithmetic equals the plain one; measured 2e-7 in float32."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron_v2pe.generate.lean_layers import lean_norm, linear, rotate, rotation
from megatron_v2pe.kernels.rotary import apply_rotary
from megatron_v2pe.models.norms import LayerNorm, RMSNorm

TOLERANCE = 2e-6
CONFIG = SimpleNamespace(params_dtype=torch.float32, sequence_parallel=False)


@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 24), (24, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(rows, inputs, outputs, bias):
    states, weight, offset = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    found = linear(states, weight, offset if bias else None)
    assert found.is_contiguous()
    torch.testing.assert_close(found, F.linear(states, weight, offset if bias else None))


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_norm(kind, dtype, scale):
    norm = kind(CONFIG, 24, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    states = torch.randn(3, 24, dtype=dtype) * scale
    with torch.no_grad():
        expected, found = norm(states), lean_norm(norm)(states)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rotation(dtype):
    states, angles = torch.randn(5, 2, 3, 8, dtype=dtype), torch.randn(5, 4) * 100
    expected = apply_rotary(states.flatten(1, 2), angles.cos(), angles.sin()).unflatten(1, (2, 3))
    found = rotate(states, *rotation(angles.cos(), angles.sin()))
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= TOLERANCE
