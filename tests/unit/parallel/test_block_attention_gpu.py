"""The CUDA attention kernels against softmax attention written out, forward and gradients."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.parallel import block_attention
from megatron_v2pe.parallel.block_attention import batched_attention, packed_causal_attention, reference_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none"),
]
HEADS, GROUPS, WIDTH = 4, 2, 64
SCALE = WIDTH**-0.5
PACKS = [(1,), (300,), (5, 1, 1, 12), (257, 64, 128, 63)]
SHARE = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-3}
"""Largest error over the largest entry: several roundings of 2^-8, 2^-11, and TF32 where float32 may use it."""
DTYPES = pytest.mark.parametrize("dtype", SHARE, ids=str)
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
BY_PACK = pytest.mark.parametrize("seqlens", PACKS, ids=str)


def random_inputs(shape, dtype):
    """Query, key, value `[*shape, heads or groups, width]` and the gradient of the output, on the device."""
    generator = torch.Generator().manual_seed(0)
    counts = (HEADS, GROUPS, GROUPS, HEADS)
    return [torch.randn(*shape, n, WIDTH, generator=generator).to("cuda", dtype) for n in counts]


def with_gradients(function, inputs, dtype):
    """Output, then gradients of query, key and value, computed in `dtype`."""
    *leaves, outgoing = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, outgoing.detach())]


def packed(seqlens):
    borders = torch.tensor([0, *seqlens], device="cuda").cumsum(0).to(torch.int32)
    return lambda q, k, v: packed_causal_attention(q, k, v, seqlens, borders, SCALE)


def by_document(seqlens):
    """`reference_attention`, document by document."""

    def attend(query, key, value):
        parts = []
        for tensors in zip(*(tensor.split(seqlens) for tensor in (query, key, value)), strict=True):
            q, k, v = (tensor.transpose(0, 1)[None] for tensor in tensors)
            parts.append(reference_attention(q, k, v, causal=True, scale=SCALE)[0].transpose(0, 1))
        return torch.cat(parts)

    return attend


def reference_tiles(query, key, value):
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    return reference_attention(q, k, v, causal=False, scale=SCALE).permute(2, 0, 1, 3)


def assert_close(ours, exact, dtype):
    for name, a, b in zip(("output", "query", "key", "value"), ours, exact, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        floor = 0.1  # a document of one token has no gradient of query and key
        share = ((a.double() - b).abs().max() / b.abs().max().clamp(min=floor)).item()
        assert share < SHARE[dtype], (name, share)


@DTYPES
@BY_PACK
def test_packed_attention(seqlens, dtype):
    inputs = random_inputs((sum(seqlens),), dtype)
    ours = with_gradients(packed(seqlens), inputs, dtype)
    assert_close(ours, with_gradients(by_document(seqlens), inputs, torch.float64), dtype)


@HALVES
@BY_PACK
def test_packed_attention_of_pytorch_where_flash_attn_is_installed(seqlens, dtype, monkeypatch):
    monkeypatch.setattr(block_attention, "flash_attn_varlen_func", None)
    inputs = random_inputs((sum(seqlens),), dtype)
    ours = with_gradients(packed(seqlens), inputs, dtype)
    assert_close(ours, with_gradients(by_document(seqlens), inputs, torch.float64), dtype)


@HALVES
def test_a_forgotten_border_is_seen(dtype):
    inputs = random_inputs((19,), dtype)
    broken = with_gradients(packed((6, 1, 12)), inputs, dtype)
    with pytest.raises(AssertionError):
        assert_close(broken, with_gradients(by_document((5, 1, 1, 12)), inputs, torch.float64), dtype)


@DTYPES
@pytest.mark.parametrize(("length", "tiles"), [(17, 3), (1025, 2)])
def test_batched_attention(length, tiles, dtype):
    inputs = random_inputs((length, tiles), dtype)
    ours = with_gradients(lambda q, k, v: batched_attention(q, k, v, SCALE), inputs, dtype)
    assert_close(ours, with_gradients(reference_tiles, inputs, torch.float64), dtype)
