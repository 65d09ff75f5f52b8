"""Kernels of block attention, and attention over batches of tiles, against a softmax written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.attention import SCALE, WIDTH, dense_results, random_inputs
from megatron_v2pe.parallel.attention.block import AttentionBlock, CpuFlash, Reference
from megatron_v2pe.parallel.attention.chunked import Chunked
from megatron_v2pe.parallel.attention.core import batched_attention
from megatron_v2pe.parallel.attention.kernel_choice import choose_kernel
from megatron_v2pe.parallel.attention.ring import ring_attention

HEADS, GROUPS = 4, 2
TOLERANCE = {
    torch.float32: 1e-5,  # measured on values up to 6: kernels 1.5e-6, batched 6.8e-7
    torch.float64: 1e-14,  # measured: kernels 2.7e-15, batched 1.3e-15
}
KERNELS = pytest.mark.parametrize(
    "kernel",
    [CpuFlash(), Reference(), Chunked(), Chunked(chunk_bytes=2000)],
    ids=["cpu_flash", "reference", "chunked", "small_chunks"],
)
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
CAUSAL = [(1,), (17,), (1, 2, 3, 4, 5, 6, 7), (5, 1, 1, 12), (33, 31, 64, 1), (1, 1, 1)]
RECTANGLES = [((1,), (1,)), ((4,), (9,)), ((9,), (4,)), ((3, 1, 40), (6, 2, 80)), ((6, 2, 80), (3, 1, 40))]
BLOCKS = [AttentionBlock(lens, lens, True, SCALE) for lens in CAUSAL] + [
    AttentionBlock(*lens, False, SCALE) for lens in RECTANGLES
]
BY_BLOCK = pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.query_lens}x{b.key_lens}")


def inputs_of(block, dtype, heads=HEADS, groups=GROUPS):
    """Query, key, value and the gradient of the output for a block."""
    queries, keys = sum(block.query_lens), sum(block.key_lens)
    query, key, value, outgoing = random_inputs((max(queries, keys),), heads, groups, dtype)
    return query[:queries], key[:keys], value[:keys], outgoing[:queries]


def results(kernel, inputs, block):
    """Output, log-sum-exp, and gradients of query, key and value."""
    *states, outgoing = inputs
    output, lse = kernel.forward(*states, block)
    return [output, lse, *kernel.backward(outgoing, *states, output, lse, block)]


def worst(ours, expected):
    return max((a.double() - b).abs().max().item() for a, b in zip(ours, expected, strict=True))


@DTYPES
@KERNELS
@BY_BLOCK
def test_a_kernel_is_a_dense_softmax(block, kernel, dtype):
    inputs = inputs_of(block, dtype)
    ours = results(kernel, inputs, block)
    assert [tensor.dtype for tensor in ours] == [dtype] * 5
    assert worst(ours, dense_results(inputs, block)) < TOLERANCE[dtype]


@KERNELS
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (6, 2), (1, 1)])
def test_any_number_of_heads_shares_a_group(heads, groups, kernel):
    for block in (AttentionBlock((7, 12), (7, 12), True, SCALE), AttentionBlock((6, 5), (3, 20), False, SCALE)):
        inputs = inputs_of(block, torch.float64, heads, groups)
        assert worst(results(kernel, inputs, block), dense_results(inputs, block)) < TOLERANCE[torch.float64]


@DTYPES
@KERNELS
def test_views_of_one_mixed_tensor_are_read_with_their_strides(kernel, dtype):
    """Query, key and value as a linear layer gives them: parts of every token's row, groups one behind the other."""
    block = AttentionBlock((5, 30), (5, 30), True, SCALE)
    query, key, value, outgoing = inputs_of(block, dtype)
    per_group = [query.unflatten(1, (GROUPS, HEADS // GROUPS)), key.unsqueeze(2), value.unsqueeze(2)]
    mixed = torch.cat(per_group, dim=2)
    views = [part.flatten(1, 2) for part in mixed.split([HEADS // GROUPS, 1, 1], dim=2)]
    straight = torch.cat([query, key, value], dim=1).split([HEADS, GROUPS, GROUPS], dim=1)
    assert not any(view.is_contiguous() for view in (*views[1:], *straight))  # queries of a group cannot be joined
    later = torch.cat([outgoing, outgoing], dim=2)[..., :WIDTH]  # a strided gradient too
    expected = dense_results((query, key, value, outgoing), block)
    for inputs in ([*views, later], [*straight, later]):
        assert worst(results(kernel, inputs, block), expected) < TOLERANCE[dtype]


@KERNELS
def test_half_precision_gives_its_sums_in_float32(kernel):
    block = AttentionBlock((3, 1, 40), (6, 2, 80), False, SCALE)
    inputs = inputs_of(block, torch.bfloat16)
    output, lse, *gradients = results(kernel, inputs, block)
    assert lse.dtype == torch.float32 and {t.dtype for t in (output, *gradients)} == {torch.bfloat16}
    expected = dense_results(inputs, block)
    assert worst([lse], expected[1:2]) < 1e-4  # measured 2.4e-5 (flash), 4.3e-7 (reference)
    for ours, exact in zip((output, *gradients), (expected[0], *expected[2:]), strict=True):
        assert ((ours.double() - exact).abs().max() / exact.abs().max()).item() < 0.02  # measured 0.005 = 1.3 x 2^-8


@KERNELS
@pytest.mark.parametrize("forgotten", [0, 1, 2])
def test_one_forgotten_border_is_seen(forgotten, kernel):
    lens = (5, 1, 1, 12)
    joined = (*lens[:forgotten], lens[forgotten] + lens[forgotten + 1], *lens[forgotten + 2 :])
    block, broken = AttentionBlock(lens, lens, True, SCALE), AttentionBlock(joined, joined, True, SCALE)
    inputs = inputs_of(block, torch.float64)
    pairs = zip(results(kernel, inputs, broken), dense_results(inputs, block), strict=True)
    for ours, expected in pairs:  # output, log-sum-exp and every gradient
        assert (ours - expected).abs().max() > 0.1


@KERNELS
def test_a_forgotten_mask_is_seen(kernel):
    block, broken = AttentionBlock((5, 9), (5, 9), True, SCALE), AttentionBlock((5, 9), (5, 9), False, SCALE)
    inputs = inputs_of(block, torch.float64)
    for ours, expected in zip(results(kernel, inputs, broken), dense_results(inputs, block), strict=True):
        assert (ours - expected).abs().max() > 0.1


@KERNELS
def test_documents_do_not_see_each_other_or_the_future(kernel):
    block = AttentionBlock((4, 6, 3), (4, 6, 3), True, SCALE)
    states = inputs_of(block, torch.float64)[:3]
    changed = [tensor.clone() for tensor in states]
    for tensor in changed:
        tensor[7] += 1.0  # the fourth token of the second document
    pairs = zip(kernel.forward(*states, block), kernel.forward(*changed, block), strict=True)
    for before, after in pairs:
        moved = (after != before).flatten(1).any(1)
        assert moved.tolist() == [False] * 7 + [True] * 3 + [False] * 3


@KERNELS
def test_a_backward_pass_takes_what_was_merged(kernel):
    """Output and log-sum-exp over more keys than the block's, with the strides a transposed result has."""
    query, key, value, outgoing = random_inputs((80,), HEADS, GROUPS, torch.float64)
    output, lse = Reference().forward(query, key, value, AttentionBlock((80,), (80,), False, SCALE))
    part = query, key[:33], value[:33]
    block = AttentionBlock((80,), (33,), False, SCALE)
    exact = Reference().backward(outgoing, *part, output, lse, block)
    ours = kernel.backward(outgoing, *part, output, lse.t().contiguous().t(), block)
    assert worst(ours, exact) < TOLERANCE[torch.float64]


def test_chunks_bound_what_is_held():
    """Scores of 1,500 x 1,500 in pieces: the largest tensor made is a chunk of them, forward and backward."""
    block, rows = AttentionBlock((1500,), (1500,), True, SCALE), 40
    inputs = inputs_of(block, torch.float32, 2, 1)
    kernel = Chunked(chunk_bytes=rows * 2 * 1500 * 4)
    with _Largest() as largest:
        ours = results(kernel, inputs, block)
    assert 1500 * 2 * WIDTH < largest.elements <= rows * 2 * 1500
    assert worst(ours, results(Reference(), [tensor.double() for tensor in inputs], block)) < TOLERANCE[torch.float32]


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operator gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        found = function(*arguments, **(settings or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return found


def test_a_causal_block_is_square():
    with pytest.raises(AssertionError, match=r"causal: \(3, 1\) and \(3, 2\)"):
        AttentionBlock((3, 1), (3, 2), True, SCALE)
    with pytest.raises(AssertionError, match="2 and 1 documents"):
        AttentionBlock((3, 1), (4,), False, SCALE)


def test_document_lengths_must_fill_the_pack():
    with pytest.raises(AssertionError, match="documents of 4 tokens, query of 5"):
        ring_attention(*random_inputs((5,), HEADS, GROUPS, torch.float32)[:3], (3, 1), None, SCALE)


def test_the_kernel_on_cpu_is_the_flash_operator_for_every_type():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert isinstance(choose_kernel(torch.empty(1, dtype=dtype)), CpuFlash)
        assert isinstance(choose_kernel(torch.empty(1, 4, 8, dtype=dtype), 2, "flash", merges=True), CpuFlash)
    assert isinstance(choose_kernel(torch.empty(1), backend="reference"), Reference)


@DTYPES
@pytest.mark.parametrize(("length", "tiles"), [(1, 1), (17, 1), (17, 3), (65, 2)])
def test_batched_attention_is_dense_and_the_reference_in_every_tile(length, tiles, dtype):
    inputs = random_inputs((length, tiles), HEADS, GROUPS, dtype)
    *leaves, outgoing = [tensor.clone().requires_grad_() for tensor in inputs]
    output = batched_attention(*leaves, SCALE)
    ours = [output.detach(), *torch.autograd.grad(output, leaves, outgoing.detach())]
    block = AttentionBlock((length,), (length,), False, SCALE)
    for tile in range(tiles):
        of_tile = [tensor[:, tile] for tensor in inputs]
        for expected in (dense_results(of_tile, block), results(Reference(), of_tile, block)):
            del expected[1]  # the log-sum-exp
            assert worst([tensor[:, tile] for tensor in ours], expected) < TOLERANCE[dtype]
