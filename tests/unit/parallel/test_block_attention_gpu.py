"""The CUDA kernels of block attention against softmax attention written out, forward and gradients."""

from __future__ import annotations

import pytest
import torch

from helpers.attention import random_inputs
from megatron_v2pe.parallel.attention import kernel_choice
from megatron_v2pe.parallel.attention.attention_backend import usable
from megatron_v2pe.parallel.attention.block import AttentionBlock, Reference
from megatron_v2pe.parallel.attention.chunked import Chunked
from megatron_v2pe.parallel.attention.core import batched_attention
from megatron_v2pe.parallel.attention.cudnn import Cudnn, lengthened
from megatron_v2pe.parallel.attention.flash import FlashAttn2, FlashAttn3, FlashAttn4, TorchFlash, installed, package
from megatron_v2pe.parallel.attention.kernel_choice import candidates, choose_kernel, probed
from megatron_v2pe.parallel.attention.mixed_kernels import ALWAYS, Mixed, Rule
from megatron_v2pe.parallel.attention.ring import merge, ring_attention

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
EVERYTHING = Rule(causal=0.0, block=0.0, tokens=33)
SOME = Rule(causal=2e6, block=2e6, tokens=33)


def _capability():
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0


def _packaged(generation):
    made_for_it = generation in installed(_capability())
    missing = "is not made for this card" if package(generation) else "is not installed"
    return pytest.mark.skipif(not made_for_it, reason=f"flash-attn {generation} {missing}")


CUDNN = pytest.mark.skipif(_capability() < 8, reason="cuDNN's attention needs compute capability 8.0")
KERNELS = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(FlashAttn2(), marks=_packaged(2), id="flash_attn_2"),
        pytest.param(FlashAttn3(), marks=_packaged(3), id="flash_attn_3"),
        pytest.param(FlashAttn4(), marks=_packaged(4), id="flash_attn_4"),
        pytest.param(TorchFlash(), id="pytorch"),
        pytest.param(Chunked(), id="chunked"),
        pytest.param(Mixed(Cudnn(), TorchFlash(), EVERYTHING), marks=CUDNN, id="cudnn"),
        pytest.param(Mixed(Cudnn(), TorchFlash(), SOME), marks=CUDNN, id="cudnn_and_pytorch"),
    ],
)
CAUSAL = [(1,), (300,), (5, 1, 1, 12), (257, 64, 128, 63), (128, 128, 128, 40)]
RECTANGLES = [((40,), (80,)), ((80,), (40,)), ((3, 1, 150), (6, 2, 300)), ((6, 2, 300), (3, 1, 150))]
BLOCKS = [AttentionBlock(lens, lens, True, SCALE) for lens in CAUSAL] + [
    AttentionBlock(*lens, False, SCALE) for lens in RECTANGLES
]
BY_BLOCK = pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.query_lens}x{b.key_lens}")


def inputs_of(block, dtype, width=WIDTH, groups=GROUPS):
    """Query, key, value and the gradient of the output for a block, on the device."""
    queries, keys = sum(block.query_lens), sum(block.key_lens)
    whole = random_inputs((max(queries, keys),), HEADS, groups, dtype, width)
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
    block = AttentionBlock((5, 30), (5, 30), True, SCALE)
    *states, outgoing = inputs_of(block, dtype)
    views = torch.cat(states, dim=1).split([HEADS, GROUPS, GROUPS], dim=1)
    later = torch.cat([outgoing, outgoing], dim=2)[..., :WIDTH]
    assert_close(results(kernel, [*views, later], block), reference([*states, outgoing], block), dtype)


@HALVES
@KERNELS
def test_a_backward_pass_takes_what_was_merged(kernel, dtype):
    """Output and log-sum-exp over more keys than the block's, with the strides `ring_attention` gives them."""
    block, wide = AttentionBlock((70,), (40,), False, SCALE), AttentionBlock((70,), (80,), False, SCALE)
    query, key, value, outgoing = inputs_of(wide, dtype)
    output, lse = Reference().forward(query.double(), key.double(), value.double(), wide)
    part = query, key[:40], value[:40]
    exact = Reference().backward(outgoing.double(), *(tensor.double() for tensor in part), output, lse, block)
    ours = kernel.backward(outgoing, *part, output.to(dtype), lse.float(), block)
    assert_close(ours, exact, dtype, NAMES[2:])


@HALVES
@KERNELS
def test_a_forgotten_border_is_seen(kernel, dtype):
    block, broken = (AttentionBlock(lens, lens, True, SCALE) for lens in ((5, 1, 1, 12), (6, 1, 12)))
    inputs = inputs_of(block, dtype)
    with pytest.raises(AssertionError):
        assert_close(results(kernel, inputs, broken), reference(inputs, block), dtype)


@HALVES
@KERNELS
@pytest.mark.parametrize(("width", "groups"), [(128, 1), (128, 4), (64, 1), (80, 2)])
def test_heads_of_other_widths_and_groups(kernel, width, groups, dtype):
    block = AttentionBlock((300, 40), (300, 40), True, width**-0.5)
    inputs = inputs_of(block, dtype, width, groups)
    assert_close(results(kernel, inputs, block), reference(inputs, block), dtype)


@HALVES
@KERNELS
@pytest.mark.parametrize("rows", [(300, 150), (150, 300), (2048, 1024)])
def test_blocks_of_a_ring_merge_to_the_whole(kernel, rows, dtype):
    """A causal block and one of earlier keys, both directions, as a rank of a ring sees them."""
    queries, earlier = rows
    query, key, value, outgoing = inputs_of(AttentionBlock((queries,), (queries + earlier,), False, SCALE), dtype)
    own, before = (
        AttentionBlock((queries,), (queries,), True, SCALE),
        AttentionBlock((queries,), (earlier,), False, SCALE),
    )
    late, early = [t[earlier:] for t in (key, value)], [t[:earlier] for t in (key, value)]
    output, lse = kernel.forward(query, *late, own)
    output, lse = output.float(), lse.clone()
    merge(output, lse, *kernel.forward(query, *early, before))
    final = output.to(dtype), lse
    ours = [kernel.backward(outgoing, query, *keys, *final, block) for keys, block in ((late, own), (early, before))]
    wide = [t.double() for t in (query, key, value, outgoing)]
    leaves = [t.requires_grad_() for t in wide[:3]]
    scores = torch.einsum("qhd,khd->hqk", wide[0], wide[1].repeat_interleave(HEADS // GROUPS, 1)) * SCALE
    hidden = torch.ones(queries, queries + earlier, dtype=torch.bool, device=DEVICE).triu(1 + earlier)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    exact = torch.einsum("hqk,khd->qhd", weights, wide[2].repeat_interleave(HEADS // GROUPS, 1))
    gradients = torch.autograd.grad(exact, leaves, wide[3])
    found = [ours[0][0].float() + ours[1][0].float(), *(torch.cat([ours[1][n], ours[0][n]]) for n in (1, 2))]
    assert_close([output.to(dtype), found[0].to(dtype), *found[1:]], [exact, *gradients], dtype, ("output", *NAMES[2:]))


@CUDNN
@HALVES
@pytest.mark.parametrize("length", [1, 129, 300, 1023, 2049])
def test_what_stands_behind_a_lengthened_document_is_not_seen(length, dtype):
    """The pack goes on behind it: nothing is copied, and nothing of what follows is found in what is returned."""
    assert lengthened(length) > length
    block = AttentionBlock((length, 200), (length, 200), True, SCALE)
    inputs = inputs_of(block, dtype)
    kernel = Mixed(Cudnn(), TorchFlash(), Rule(causal=0.0, block=0.0))
    before = results(kernel, inputs, block)
    assert_close(before, reference(inputs, block), dtype)
    for tensor in inputs:
        tensor[length:] *= 50.0
    output, lse, _, key, value = results(kernel, inputs, block)
    assert torch.equal(output[:length], before[0][:length]) and torch.equal(lse[:length], before[1][:length])
    for ours, earlier in ((key, before[3]), (value, before[4])):
        scale = earlier[:length].abs().max()
        assert ((ours[:length] - earlier[:length]).abs().max() / scale).item() < SHARE[dtype]


@BY_BLOCK
def test_float32_is_attended_in_chunks(block):
    inputs = inputs_of(block, torch.float32)
    kernel = choose_kernel(inputs[0], GROUPS)
    assert isinstance(kernel, Chunked)
    for found in (kernel, Chunked(chunk_bytes=100_000)):
        assert_close(results(found, inputs, block), reference(inputs, block), torch.float32)


def test_float32_is_linear_in_memory():
    """12,000 tokens in one document: scores of all heads would be 2.3 GB, three times in backward."""
    block = AttentionBlock((12_000,), (12_000,), True, SCALE)
    inputs = inputs_of(block, torch.float32)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(choose_kernel(inputs[0], GROUPS), inputs, block)
    assert torch.cuda.max_memory_allocated() - before < 1.2e9


def test_the_choice_of_a_kernel(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_chosen", {})
    half = torch.empty(1, HEADS, 128, dtype=torch.bfloat16, device=DEVICE)
    assert isinstance(choose_kernel(half.float(), GROUPS), Chunked)
    assert isinstance(choose_kernel(half, GROUPS, "flash"), TorchFlash)
    assert isinstance(choose_kernel(half, GROUPS, "reference"), Reference)
    newer = set(installed(_capability())) & {3, 4}
    if _capability() >= 9 and not newer:
        for merges in (False, True):  # in a ring too: cuDNN's backward takes what was merged
            assert isinstance(choose_kernel(half, GROUPS, merges=merges), Mixed)


@HALVES
@pytest.mark.parametrize(("width", "ratio"), [(128, 2), (64, 1), (64, 16)])
def test_every_kernel_of_this_machine_passes_its_test(width, ratio, dtype):
    device = torch.device(DEVICE, torch.cuda.current_device())
    names = {name for name, _ in candidates(device, dtype, width, ratio)}
    assert {"PyTorch's flash", "plain, in chunks of queries"} <= names
    assert ("cuDNN wherever it can" in names) == ("cudnn" in usable(device))
    if "cudnn" in usable(device):
        assert probed(Mixed(Cudnn(), TorchFlash(), ALWAYS), device, dtype, width, ratio, merges=True) is None


@HALVES
def test_attention_never_waits_for_the_device(dtype):
    """Documents of lengths not seen before, forward and backward: no synchronising call."""
    block = AttentionBlock((301, 77, 5), (301, 77, 5), True, SCALE)
    inputs = inputs_of(block, dtype)
    kernel = choose_kernel(inputs[0], GROUPS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(kernel, inputs, block)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@HALVES
def test_a_packs_attention_in_autograd(dtype):
    lens = (2500, 60, 700, 4)
    block = AttentionBlock(lens, lens, True, SCALE)
    inputs = inputs_of(block, dtype)
    *leaves, outgoing = [tensor.clone().requires_grad_() for tensor in inputs]
    output, lse = ring_attention(*leaves, lens, None, SCALE)
    ours = [output.detach(), lse, *torch.autograd.grad(output, leaves, outgoing.detach())]
    assert_close(ours, reference(inputs, block), dtype)


@pytest.mark.parametrize("dtype", SHARE, ids=str)
@pytest.mark.parametrize(("length", "tiles"), [(17, 3), (1025, 2)])
@pytest.mark.parametrize("backend", ["auto", "flash", "reference"])
def test_batched_attention(length, tiles, dtype, backend):
    inputs = [tensor.to(DEVICE) for tensor in random_inputs((length, tiles), HEADS, GROUPS, dtype, WIDTH)]
    *leaves, outgoing = [tensor.clone().requires_grad_() for tensor in inputs]
    output = batched_attention(*leaves, SCALE, backend)
    ours = [output.detach(), *torch.autograd.grad(output, leaves, outgoing.detach())]
    names = ("output", "query", "key", "value")
    for tile in range(tiles):
        exact = reference([tensor[:, tile] for tensor in inputs], AttentionBlock((length,), (length,), False, SCALE))
        del exact[1]  # the log-sum-exp
        assert_close([tensor[:, tile] for tensor in ours], exact, dtype, names)
