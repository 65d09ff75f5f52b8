"""Where the cache keeps what: slabs, room, growth, owners of new tokens; and steps of prefill, as literal lists."""

from __future__ import annotations

import pytest
import torch

from helpers.attention import dense
from megatron_v2pe.generate import kv_cache
from megatron_v2pe.generate.cached_attention import side_by_side
from megatron_v2pe.generate.kv_cache import KVCache, owner
from megatron_v2pe.generate.prefill_plan import plan_steps
from megatron_v2pe.parallel.attention.block import AttentionBlock


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(kv_cache, "CHUNK", 4)


def made(*capacities, layers=2):
    return KVCache(capacities, layers, groups=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))


def numbers(*values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(-1, 1, 2)


def held(cache, layer, sequence):
    keys, values = cache.view(layer, sequence, cache.lengths[sequence])
    assert torch.equal(keys, -values)
    return keys[:, 0, 0].tolist()


def fill(cache, layer, sequence, start, *values):
    cache.write(layer, sequence, start, numbers(*values), -numbers(*values))


def test_sequences_of_like_length_share_a_slab(small_chunks):
    cache = made(9, 5, 8, 2, 0)
    assert [(slab.first, slab.stop, slab.room) for slab in cache.slabs] == [(0, 1, 12), (1, 3, 8), (3, 5, 4)]
    assert cache.lengths == [0] * 5
    assert cache.num_bytes == 2 * 2 * (12 + 16 + 8) * 2 * 4  # layers x (K, V) x places x width x bytes


def test_what_is_written_stays_while_the_cache_grows_and_shrinks(small_chunks):
    cache = made(6, 4, 3)
    for layer in range(2):
        fill(cache, layer, 0, 0, 1, 2, 3, 4, 5)
        fill(cache, layer, 1, 0, 6, 7)
        fill(cache, layer, 2, 0, 8, 9, 10)
    cache.extend([5, 2, 3])
    assert cache.lengths == [5, 2, 3]
    fill(cache, 1, 2, 3, 11)
    cache.extend([0, 0, 1])
    cache.extend([0, 0, 1])
    assert [slab.room for slab in cache.slabs] == [8, 8]
    fill(cache, 1, 2, 4, 12)
    assert held(cache, 1, 2) == [8, 9, 10, 11, 12]
    assert held(cache, 1, 1) == [6, 7] and held(cache, 0, 0) == [1, 2, 3, 4, 5]
    cache.keep([0, 2])
    assert cache.lengths == [5, 5] and held(cache, 1, 1) == [8, 9, 10, 11, 12]
    cache.keep([1])
    assert cache.lengths == [5] and held(cache, 1, 0) == [8, 9, 10, 11, 12]


def test_generated_tokens_are_dealt_in_turn():
    assert [owner(number, 0, 3) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [owner(0, sequence, 2) for sequence in range(4)] == [0, 1, 0, 1]
    assert {owner(number, 1, 1) for number in range(5)} == {0}


def test_steps_of_prefill():
    def steps(lengths, budget):
        return [[(p.sequence, p.start, p.length, p.last) for p in step] for step in plan_steps(lengths, budget)]

    assert steps([5, 3, 9], 8) == [
        [(0, 0, 5, True), (1, 0, 3, True)],
        [(2, 0, 8, False)],
        [(2, 8, 1, True)],
    ]
    assert steps([5, 5], 8) == [[(0, 0, 5, True)], [(1, 0, 5, True)]]  # not cut where it fits a step of its own
    assert steps([3, 9], 8) == [[(0, 0, 3, True), (1, 0, 5, False)], [(1, 5, 4, True)]]
    assert steps([2, 1], 100) == [[(0, 0, 2, True), (1, 0, 1, True)]]
    assert steps([2], 1) == [[(0, 0, 1, False)], [(0, 1, 1, True)]]


def test_slab_attention_equals_dense():
    """In one call on CPU; measured 5e-16."""
    generator = torch.Generator().manual_seed(0)
    groups, heads, width, lengths = 2, 3, 16, [7, 3, 5]
    query = torch.randn(3, groups, heads, width, generator=generator, dtype=torch.float64)
    keys, values = (torch.randn(3, 9, groups, width, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(3, 1, 1, 7, dtype=torch.float64)
    for row, length in enumerate(lengths):
        mask[row, ..., length:] = -torch.inf
    output, lse = side_by_side(query, keys, values, 7, mask, width**-0.5)
    for row, length in enumerate(lengths):
        block = AttentionBlock((1,), (length,), False, width**-0.5)
        flat = query[row].flatten(0, 1).unsqueeze(0)
        expected, total = dense(flat, keys[row, :length], values[row, :length], block)
        assert (output[row].flatten(0, 1) - expected[0]).abs().max() < 1e-14
        assert (lse[row].flatten() - total.flatten()).abs().max() < 1e-14
