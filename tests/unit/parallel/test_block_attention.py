"""Attention over packs and over batches of tiles against softmax attention written out, forward and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_v2pe.parallel.block_attention import batched_attention, packed_causal_attention, reference_attention

HEADS, GROUPS, WIDTH = 4, 2, 16
SCALE = WIDTH**-0.5
TOLERANCE = {
    torch.float32: 1e-5,  # measured on values up to 6: packed 1.7e-6, batched 6.8e-7
    torch.float64: 1e-14,  # measured: packed 3.2e-15, batched 2.0e-15
}
PACKS = [(1,), (17,), (1, 2, 3, 4, 5, 6, 7), (5, 1, 1, 12), (33, 31, 64, 1), (1, 1, 1)]
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
BY_PACK = pytest.mark.parametrize("seqlens", PACKS, ids=str)


def random_inputs(shape, dtype, seed=0):
    """Query, key, value `[*shape, heads or groups, width]` and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    counts = (HEADS, GROUPS, GROUPS, HEADS)
    return [torch.randn(*shape, n, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for n in counts]


def with_gradients(function, inputs):
    """Output, then gradients of query, key and value, in float64."""
    *leaves, outgoing = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [tensor.double() for tensor in (output.detach(), *torch.autograd.grad(output, leaves, outgoing.detach()))]


def dense_packed(query, key, value, seqlens):
    """Softmax over all tokens of a pack with one mask of same document and not later: [S, heads, d], in float64."""
    document = torch.repeat_interleave(torch.arange(len(seqlens)), torch.tensor(seqlens))
    token = torch.arange(len(document))
    allowed = (document[:, None] == document) & (token[:, None] >= token)
    return dense(query, key, value, allowed)


def dense(query, key, value, allowed):
    """One head at a time on [S, heads, d]; head h reads group h // (heads // groups)."""
    heads = []
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        scores = query[:, head].double() @ key[:, group].double().T * SCALE
        weights = scores.masked_fill(~allowed, -math.inf).exp()
        heads.append(weights / weights.sum(-1, keepdim=True) @ value[:, group].double())
    return torch.stack(heads, dim=1).to(query.dtype)


def packed(seqlens):
    borders = torch.tensor([0, *seqlens]).cumsum(0).to(torch.int32)
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


def worst(ours, expected):
    return max((a - b).abs().max().item() for a, b in zip(ours, expected, strict=True))


@DTYPES
@BY_PACK
def test_packed_attention_is_the_reference_document_by_document(seqlens, dtype):
    inputs = random_inputs((sum(seqlens),), dtype)
    ours = with_gradients(packed(seqlens), inputs)
    assert worst(ours, with_gradients(by_document(seqlens), inputs)) < TOLERANCE[dtype]


@DTYPES
@BY_PACK
def test_packed_attention_is_a_dense_softmax_with_a_block_mask(seqlens, dtype):
    inputs = random_inputs((sum(seqlens),), dtype, seed=1)
    ours = with_gradients(packed(seqlens), inputs)
    wide = [tensor.double() for tensor in inputs]
    expected = with_gradients(lambda q, k, v: dense_packed(q, k, v, seqlens), wide)
    assert worst(ours, expected) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("forgotten", [0, 1, 2])
def test_one_forgotten_border_is_seen(forgotten, dtype):
    seqlens = (5, 1, 1, 12)
    joined = (*seqlens[:forgotten], seqlens[forgotten] + seqlens[forgotten + 1], *seqlens[forgotten + 2 :])
    inputs = random_inputs((sum(seqlens),), dtype)
    expected = with_gradients(lambda q, k, v: dense_packed(q, k, v, seqlens), inputs)
    broken = with_gradients(packed(joined), inputs)
    for ours, theirs in zip(broken, expected, strict=True):  # output and every gradient
        assert (ours - theirs).abs().max() > 0.1


def test_documents_do_not_see_each_other_or_the_future():
    seqlens, inputs = (4, 6, 3), random_inputs((13,), torch.float64)
    attend = packed(seqlens)
    before = attend(*inputs[:3])
    changed = [tensor.clone() for tensor in inputs[:3]]
    for tensor in changed:
        tensor[7] += 1.0  # the fourth token of the second document
    moved = (attend(*changed) != before).flatten(1).any(1)
    assert moved.tolist() == [False] * 7 + [True] * 3 + [False] * 3


def test_document_lengths_must_fill_the_pack():
    with pytest.raises(AssertionError, match="documents of 4 tokens, query of 5"):
        packed((3, 1))(*random_inputs((5,), torch.float32)[:3])


@DTYPES
@pytest.mark.parametrize(("length", "tiles"), [(1, 1), (17, 1), (17, 3), (65, 2)])
def test_batched_attention_is_dense_and_the_reference_in_every_tile(length, tiles, dtype):
    inputs = random_inputs((length, tiles), dtype)
    ours = with_gradients(lambda q, k, v: batched_attention(q, k, v, SCALE), inputs)
    everything = torch.ones(length, length, dtype=torch.bool)

    def dense_tiles(*tensors):
        return torch.stack([dense(*tile, everything) for tile in zip(*(t.unbind(1) for t in tensors), strict=True)], 1)

    def reference(*tensors):
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in tensors)
        return reference_attention(q, k, v, causal=False, scale=SCALE).permute(2, 0, 1, 3)

    assert worst(ours, with_gradients(dense_tiles, [tensor.double() for tensor in inputs])) < TOLERANCE[dtype]
    assert worst(ours, with_gradients(reference, inputs)) < TOLERANCE[dtype]


@DTYPES
def test_the_reference_itself_is_a_dense_softmax(dtype):
    inputs = random_inputs((21,), dtype)
    ours = with_gradients(by_document((21,)), inputs)
    expected = with_gradients(lambda q, k, v: dense_packed(q, k, v, (21,)), [tensor.double() for tensor in inputs])
    assert worst(ours, expected) < TOLERANCE[dtype]
