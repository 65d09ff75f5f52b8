"""The largest attention logit, block by block, equals that of the whole matrix of products."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.parallel.attention.largest_logit import _of_pair, _pairs, largest_logit
from megatron_v2pe.parallel.zigzag import ZigzagLayout

HEADS, GROUPS, WIDTH, SCALE = 6, 2, 8, 0.3
LENGTHS = (7, 1, 12, 5)


def drawn(tokens, heads, seed):
    return torch.randn(tokens, heads, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(query, key, causal=True):
    """Of every document by itself: the whole matrix, its upper half hidden."""
    largest, keys = -torch.inf, key.repeat_interleave(HEADS // GROUPS, dim=1)
    for part, seen in zip(query.split(LENGTHS), keys.split(LENGTHS), strict=True):
        products = torch.einsum("ihd,jhd->hij", part, seen)
        if causal:
            products = products.masked_fill(torch.ones_like(products[0], dtype=torch.bool).triu(1), -torch.inf)
        largest = max(largest, products.max().item())
    return largest * SCALE


@pytest.mark.parametrize("block", [1, 40, 200, 1 << 20])
@pytest.mark.parametrize("seed", range(8))
def test_blocks_give_what_the_whole_matrix_gives(block, seed):
    query, key = drawn(25, HEADS, seed), drawn(25, GROUPS, seed + 10)
    found = largest_logit(query, key, ZigzagLayout(LENGTHS), SCALE, None, block)
    assert found.item() == pytest.approx(plain(query, key), rel=1e-12)  # measured 4e-16


def test_the_mask_matters_to_some_of_them():
    draws = [(drawn(25, HEADS, seed), drawn(25, GROUPS, seed + 10)) for seed in range(8)]
    assert any(plain(*draw, causal=False) > plain(*draw) * 1.001 for draw in draws)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_share_documents_find_the_same(ranks):
    """What each rank compares, put together: padding is left out, every pair that sees each other is there."""
    layout = ZigzagLayout(LENGTHS, context_parallel_size=ranks)
    query, key = drawn(25, HEADS, 5), drawn(25, GROUPS, 15)
    shares = [[layout.shard(tensor, rank, 1e3) for tensor in (query, key)] for rank in range(ranks)]
    found = [
        largest
        for rank in range(ranks)
        for other in range(ranks)
        for queries, seen, ahead in _pairs(layout, rank, other)
        for largest in _of_pair(shares[rank][0][queries], shares[other][1][seen], ahead, 40)
    ]
    assert max(found).item() * SCALE == pytest.approx(plain(query, key), rel=1e-12)


def test_a_pack_of_padding_has_no_logit():
    layout = ZigzagLayout((), tensor_model_parallel_size=2)
    query, key = drawn(layout.num_tokens, HEADS, 0), drawn(layout.num_tokens, GROUPS, 1)
    assert largest_logit(query.float(), key.float(), layout, SCALE, None).item() == -torch.inf
