"""Attention over several processes, by a ring and by all-to-all, against a softmax written out; with planted faults."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from helpers.attention import (
    FAULTS,
    SCALE,
    WIDTH,
    attended,
    attended_twice,
    bytes_on_the_wire,
    dense,
    dense_results,
    divided,
    random_inputs,
    saved_bytes,
)
from megatron_v2pe.parallel.attention.all_to_all import all_to_all_attention
from megatron_v2pe.parallel.attention.block import AttentionBlock, Reference
from megatron_v2pe.parallel.attention.mixed_kernels import parts
from megatron_v2pe.parallel.attention.ring import Chunks, merge
from megatron_v2pe.parallel.zigzag import ZigzagLayout

POOL = 4
PACKS = [(64,), (37, 5, 1, 90), (8, 8, 8), (1, 3, 5, 7, 9, 11, 13)]
TOLERANCE = {
    torch.float64: 1e-14,  # measured on values up to 8: ring 6.2e-15, all-to-all 4.4e-15
    torch.float32: 1e-5,  # measured 9.7e-7, 1.4e-6
    torch.bfloat16: 0.1,  # measured 0.029, 0.029; a rounding of 8 is 0.016
}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
BY_PACK = pytest.mark.parametrize("lengths", PACKS, ids=str)
METHODS = pytest.mark.parametrize("method", ["ring", "all_to_all"])


def on(pools, size, function, **arguments):
    """Results of the ranks of a group of `size`, in order."""
    results = pools[POOL].run(function, size=size, **arguments)
    assert results[: POOL - size] == [None] * (POOL - size)
    return results[POOL - size :]


def errors(shares, lengths, heads, groups, dtype):
    """Largest error of the output, its log-sum-exp where there is one, and the gradients of query, key and value."""
    layout = ZigzagLayout(lengths, len(shares))
    whole = [layout.unshard(parts) for parts in zip(*shares, strict=True)]
    expected = dense_results(
        random_inputs((sum(lengths),), heads, groups, dtype), AttentionBlock(lengths, lengths, causal=True, scale=SCALE)
    )
    if len(whole) == 4:
        del expected[1]
    assert all(tensor.dtype == dtype for tensor in (whole[0], *whole[-3:]))
    return [(ours.double() - exact).abs().max().item() for ours, exact in zip(whole, expected, strict=True)]


def worst(*arguments):
    return max(errors(*arguments))


@BY_PACK
@pytest.mark.parametrize(
    ("heads", "groups", "dtype"),
    [(4, 2, dtype) for dtype in TOLERANCE] + [(4, 4, torch.float64), (4, 1, torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_ring_is_a_dense_softmax(pools, size, heads, groups, lengths, dtype):
    case = {"lengths": lengths, "heads": heads, "groups": groups, "dtype": dtype}
    assert worst(on(pools, size, attended, **case), *case.values()) < TOLERANCE[dtype]


@BY_PACK
@pytest.mark.parametrize(
    ("size", "heads", "groups", "dtype"),
    [(4, 8, 4, dtype) for dtype in TOLERANCE] + [(2, 4, 2, torch.float64), (2, 4, 4, torch.float64)],
    ids=str,
)
def test_all_to_all_is_a_dense_softmax(pools, size, heads, groups, lengths, dtype):
    case = {"lengths": lengths, "heads": heads, "groups": groups, "dtype": dtype}
    assert worst(on(pools, size, attended, method="all_to_all", **case), *case.values()) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_ring_of_reference_blocks_is_a_dense_softmax(pools, size, dtype):
    case = {"lengths": (37, 5, 1, 90), "heads": 4, "groups": 2, "dtype": dtype}
    assert worst(on(pools, size, attended, reference=True, **case), *case.values()) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("size", [2, 4])
def test_a_ring_of_divided_blocks_is_a_dense_softmax(pools, size, dtype):
    """Long documents by one kernel, short ones by another, and blocks merged: as on a GPU with cuDNN."""
    case = {"lengths": (97, 5, 1, 190, 40), "heads": 4, "groups": 2, "dtype": dtype}
    lens, kernel = ZigzagLayout(case["lengths"], size).local_seqlens, divided()
    for block in (
        AttentionBlock(lens, lens, True, SCALE),
        AttentionBlock(lens, tuple(length // 2 for length in lens), False, SCALE),
    ):
        kinds = [part.dense for part in parts(block, 4 * WIDTH, kernel.rule)]
        assert kinds[0] is False and kinds[1:] == [True] * (len(kinds) - 1) and len(kinds) > 1
    assert worst(on(pools, size, attended, division=True, **case), *case.values()) < TOLERANCE[dtype]


@METHODS
def test_views_of_one_mixed_tensor_travel(pools, method):
    case = {"lengths": (37, 5, 1, 90), "heads": 4, "groups": 2, "dtype": torch.float64}
    shares = on(pools, 2, attended, method=method, mixed=True, **case)
    assert worst(shares, *case.values()) < TOLERANCE[torch.float64]


def test_all_to_all_refuses_heads_that_do_not_divide():
    four = SimpleNamespace(size=lambda: 4)
    query, key, value, _ = random_inputs((8,), 4, 2, torch.float32)
    with pytest.raises(AssertionError, match=r"4 ranks do not divide heads \(4, 2, 2\)"):
        all_to_all_attention(query, key, value, (32,), torch.arange(32), four, SCALE)


BROKEN = {
    "zigzag over the whole pack": {"output", "lse", "query", "key", "value"},
    "wrong half travels on": {"output", "lse", "query", "key", "value"},
    "gradients left behind": {"key", "value"},
    "blocks weigh the same": {"output", "query", "key"},  # weights are formed anew from the right log-sum-exp
}
"""What each planted fault makes wrong; everything else stays exact."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(pools, fault):
    case = {"lengths": (8, 24, 16), "heads": 4, "groups": 2, "dtype": torch.float64}
    shares = on(pools, 4, attended, fault=fault, **case)
    if fault == "zigzag over the whole pack":  # shares of another order than `errors` knows
        held, layout = (ZigzagLayout(lengths, 4) for lengths in ((48,), case["lengths"]))
        whole = [held.unshard(parts) for parts in zip(*shares, strict=True)]
        shares = [[layout.shard(tensor, rank, 0.0) for tensor in whole] for rank in range(4)]
    found = dict(zip(("output", "lse", "query", "key", "value"), errors(shares, *case.values()), strict=True))
    assert {name for name, error in found.items() if error > 0.1} == BROKEN[fault]
    assert all(error < TOLERANCE[torch.float64] for name, error in found.items() if name not in BROKEN[fault])


@METHODS
@pytest.mark.parametrize("lengths", [(64,), (37, 5, 1, 90)], ids=str)
def test_a_kept_result_is_not_computed_again(pools, lengths, method):
    size = 4
    for first, second in on(pools, size, attended_twice, lengths=lengths, heads=8, groups=4, method=method):
        assert all(torch.equal(a, b) for a, b in zip(first["results"], second["results"], strict=True))
        assert first["forwards"] == (size if method == "ring" else 1)
        assert (first["bytes"] > 0) == (method == "ring")
        assert second["forwards"] == second["bytes"] == 0


@METHODS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(64,), (37, 5, 1, 90)], ids=str)
def test_a_rank_keeps_its_own_tensors_only(pools, lengths, dtype, method):
    """Query, key, value and output once each, and the log-sum-exp: nothing of other ranks', no copy in float32."""
    heads, groups, tokens = 8, 4, ZigzagLayout(lengths, 4).num_local_tokens
    wide = max(dtype.itemsize, 4)
    row = WIDTH * dtype.itemsize
    expected = [tokens * count for count in (heads * wide, groups * row, groups * row, heads * row, heads * row)]
    case = {"lengths": lengths, "heads": heads, "groups": groups, "dtype": dtype, "method": method}
    assert on(pools, 4, saved_bytes, **case) == [(sorted(expected), sum(expected))] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("lengths", [(64,), (37, 5, 1, 90)], ids=str)
def test_a_quarter_of_the_bytes_stays_at_home(pools, lengths, size, dtype):
    groups, tokens = 2, ZigzagLayout(lengths, size).num_local_tokens
    sent = on(pools, size, bytes_on_the_wire, lengths=lengths, heads=4, groups=groups, dtype=dtype)
    numbers = size * (size - 1) * 2 * tokens * groups * WIDTH  # all keys and values to all other ranks
    forward, backward = (sum(column) for column in zip(*sent, strict=True))
    assert forward == 0.75 * numbers * dtype.itemsize
    # Gradients travel in float32 or wider, one step later; only those of rank 0's keys are halved.
    assert backward == forward + (1 - 0.5 / size) * numbers * max(dtype.itemsize, 4)


@pytest.mark.parametrize(
    ("dtype", "of_output", "of_lse"),
    [
        (torch.float64, 5e-11, 1e-14),  # measured 4.7e-12 (3.8e-15 around 0), and 7.8e-16 of the sum
        (torch.float32, 0.02, 1e-6),  # measured 1.8e-3 (1.9e-6 around 0), 2.1e-7: scores of 1e4 are rounded by 5e-4
    ],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("levels", [(0, 0, 0), (1, 1, 1), (-1, -1, -1), (0, 1, -1)], ids=str)
def test_merged_blocks_are_the_joint_softmax_at_any_size_of_scores(levels, dtype, of_output, of_lse):
    """Blocks of scores around 0, 1e4 or -1e4, merged in every order: none overflows, all agree."""
    query, key, value, _ = random_inputs((30,), 4, 2, torch.float64)
    query[..., 0], key[..., 0] = 100.0, torch.tensor(levels).repeat_interleave(10)[:, None] * 100.0
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    output, lse = dense(query, key, value, AttentionBlock((30,), (30,), causal=False, scale=1.0))
    block = AttentionBlock((30,), (10,), causal=False, scale=1.0)
    blocks = [Reference().forward(query, *part, block) for part in zip(key.split(10), value.split(10), strict=True)]
    for level, (_, total) in zip(levels, blocks, strict=True):
        assert (total - 1e4 * level).abs().max() < 30
    for order in itertools.permutations(blocks):
        merged = [tensor.clone() for tensor in order[0]]
        for other in order[1:]:
            merge(*merged, *other)
        assert (merged[0] - output).abs().max() < of_output
        assert (merged[1] / lse - 1).abs().max() < of_lse


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_merge_of_known_numbers(dtype):
    output, other = torch.ones(4, 1, 1, dtype=dtype), torch.full((4, 1, 1), 5.0, dtype=dtype)
    lse = torch.tensor([[0.0], [1e4], [-1e4], [7.0]], dtype=dtype)
    merge(output, lse, other, torch.tensor([[0.0], [-1e4], [1e4], [7 + math.log(3)]], dtype=dtype))
    assert output.flatten().tolist() == pytest.approx([3.0, 1.0, 5.0, 4.0], rel=1e-6)
    assert lse.flatten().tolist() == pytest.approx([math.log(2), 1e4, 1e4, 7 + math.log(4)], rel=1e-6)


def test_merge_takes_a_block_of_half_precision():
    output, lse = torch.ones(2, 3, 4), torch.zeros(2, 3)
    merge(output, lse, torch.full((2, 3, 4), 3.0, dtype=torch.bfloat16), torch.zeros(2, 3))
    assert output.dtype == torch.float32 and output.eq(2).all()


def test_chunks_of_one_and_of_several_documents():
    for lens, first, second in [((6,), [0, 1, 2], [3, 4, 5]), ((4, 2, 6), [0, 1, 4, 6, 7, 8], [2, 3, 5, 9, 10, 11])]:
        chunks, rows = Chunks.of(lens, torch.device("cpu")), torch.arange(float(sum(lens)))
        assert chunks.first(rows).tolist() == first and chunks.second(rows).tolist() == second
        assert chunks.rows == len(first)
        sums = torch.zeros(sum(lens))
        chunks.add_first(sums, torch.ones(len(first)))
        chunks.add_second(sums, torch.full((len(second),), 2.0, dtype=torch.bfloat16))
        assert sums[first].eq(1).all() and sums[second].eq(2).all()
        late = chunks.second(rows)
        late += 100
        chunks.put_second(rows, late)
        assert rows.tolist() == [n + 100 * (n in second) for n in range(sum(lens))]


def test_a_document_that_cannot_be_halved_is_named():
    with pytest.raises(AssertionError, match=r"documents of \(4, 3\) tokens cannot be cut into two chunks"):
        Chunks((4, 3), torch.device("cpu"))
