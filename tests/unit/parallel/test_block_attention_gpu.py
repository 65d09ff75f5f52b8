"""The CUDA kernels of block attention against softmax attention written out, forward and gradients."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.parallel import cuda_attention
from megatron_v2pe.parallel.block_attention import Block, Reference, batched_attention, choose_kernel
from megatron_v2pe.parallel.cuda_attention import FlashAttn, TorchFlash
from megatron_v2pe.testing.attention import random_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none"),
]
DEVICE = "cuda"
HEADS, GROUPS, WIDTH = 4, 2, 64
SCALE = WIDTH**-0.5
NAMES = ("output", "lse", "query", "key", "value")
SHARE = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-3}
"""Largest error over the largest entry: several roundings of 2^-8, 2^-11, and TF32 where float32 may use it."""
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
KERNELS = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(
            FlashAttn(),
            marks=pytest.mark.skipif(cuda_attention.flash_attn_interface is None, reason="flash-attn is not installed"),
        ),
        TorchFlash(),
    ],
    ids=["flash_attn", "pytorch"],
)
CAUSAL = [(1,), (300,), (5, 1, 1, 12), (257, 64, 128, 63)]
RECTANGLES = [((40,), (80,)), ((80,), (40,)), ((3, 1, 150), (6, 2, 300)), ((6, 2, 300), (3, 1, 150))]
BLOCKS = [Block(lens, lens, True, SCALE) for lens in CAUSAL] + [Block(*lens, False, SCALE) for lens in RECTANGLES]
BY_BLOCK = pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.query_lens}x{b.key_lens}")


def inputs_of(block, dtype):
    """Query, key, value and the gradient of the output for a block, on the device."""
    queries, keys = sum(block.query_lens), sum(block.key_lens)
    whole = random_inputs((max(queries, keys),), HEADS, GROUPS, dtype, WIDTH)
    return [tensor[:rows].to(DEVICE) for tensor, rows in zip(whole, (queries, keys, keys, queries), strict=True)]


def results(kernel, inputs, block):
    """Output, log-sum-exp, and gradients of query, key and value."""
    *states, outgoing = inputs
    output, lse = kernel.forward(*states, block)
    return [output, lse, *kernel.backward(outgoing, *states, output, lse, block)]


def reference(inputs, block):
    return results(Reference(), [tensor.double() for tensor in inputs], block)


def assert_close(ours, exact, dtype, names=NAMES):
    for name, a, b in zip(names, ours, exact, strict=True):
        assert a.dtype == (torch.float32 if name == "lse" else dtype) and a.shape == b.shape, name
        floor = 0.1  # a document of one token has no gradient of query and key
        share = ((a.double() - b).abs().max() / b.abs().max().clamp(min=floor)).item()
        assert share < SHARE[dtype], (name, share)


@HALVES
@KERNELS
@BY_BLOCK
def test_a_kernel_is_the_reference(block, kernel, dtype):
    inputs = inputs_of(block, dtype)
    assert_close(results(kernel, inputs, block), reference(inputs, block), dtype)


@HALVES
@KERNELS
def test_views_of_one_mixed_tensor_are_read_with_their_strides(kernel, dtype):
    block = Block((5, 30), (5, 30), True, SCALE)
    *states, outgoing = inputs_of(block, dtype)
    views = torch.cat(states, dim=1).split([HEADS, GROUPS, GROUPS], dim=1)
    later = torch.cat([outgoing, outgoing], dim=2)[..., :WIDTH]
    assert_close(results(kernel, [*views, later], block), reference([*states, outgoing], block), dtype)


@HALVES
@KERNELS
def test_a_backward_pass_takes_what_was_merged(kernel, dtype):
    """Output and log-sum-exp over more keys than the block's, with the strides `ring_attention` gives them."""
    block, wide = Block((70,), (40,), False, SCALE), Block((70,), (80,), False, SCALE)
    query, key, value, outgoing = inputs_of(wide, dtype)
    output, lse = Reference().forward(query.double(), key.double(), value.double(), wide)
    part = query, key[:40], value[:40]
    exact = Reference().backward(outgoing.double(), *(tensor.double() for tensor in part), output, lse, block)
    ours = kernel.backward(outgoing, *part, output.to(dtype), lse.float(), block)
    assert_close(ours, exact, dtype, NAMES[2:])


@HALVES
@KERNELS
def test_a_forgotten_border_is_seen(kernel, dtype):
    block, broken = (Block(lens, lens, True, SCALE) for lens in ((5, 1, 1, 12), (6, 1, 12)))
    inputs = inputs_of(block, dtype)
    with pytest.raises(AssertionError):
        assert_close(results(kernel, inputs, broken), reference(inputs, block), dtype)


def test_the_choice_of_a_kernel(monkeypatch):
    half = torch.empty(1, dtype=torch.bfloat16, device=DEVICE)
    assert isinstance(choose_kernel(half.float()), Reference)
    for installed, expected in ((object(), FlashAttn), (None, TorchFlash)):
        monkeypatch.setattr(cuda_attention, "flash_attn_interface", installed)
        assert isinstance(choose_kernel(half), expected)


@pytest.mark.parametrize("dtype", SHARE, ids=str)
@pytest.mark.parametrize(("length", "tiles"), [(17, 3), (1025, 2)])
def test_batched_attention(length, tiles, dtype):
    inputs = [tensor.to(DEVICE) for tensor in random_inputs((length, tiles), HEADS, GROUPS, dtype, WIDTH)]
    *leaves, outgoing = [tensor.clone().requires_grad_() for tensor in inputs]
    output = batched_attention(*leaves, SCALE)
    ours = [output.detach(), *torch.autograd.grad(output, leaves, outgoing.detach())]
    names = ("output", "query", "key", "value")
    for tile in range(tiles):
        exact = reference([tensor[:, tile] for tensor in inputs], Block((length,), (length,), False, SCALE))
        del exact[1]  # the log-sum-exp
        assert_close([tensor[:, tile] for tensor in ours], exact, dtype, names)
