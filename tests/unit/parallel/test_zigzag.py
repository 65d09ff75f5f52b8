"""The order of a pack over context-parallel ranks: written-out cases, and what holds for packs of any lengths."""

from __future__ import annotations

from math import lcm

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_v2pe.errors import LayoutError
from megatron_v2pe.parallel.zigzag import ZigzagLayout, padding_multiples

PAD = -1


@st.composite
def layouts(draw):
    """Packs of up to six documents on up to 5 x 3 ranks."""
    lengths = draw(st.lists(st.integers(1, 40), max_size=6))
    return ZigzagLayout(tuple(lengths), draw(st.integers(1, 5)), draw(st.integers(1, 3)))


def held(lengths, context, tensor=1):
    """Tokens of every rank as lists, `PAD` for padding."""
    layout = ZigzagLayout(lengths, context, tensor)
    return [layout.tokens_of(rank).tolist() for rank in range(context)]


def test_one_document():
    assert held((8,), 2) == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert held((8,), 4) == [[0, 7], [1, 6], [2, 5], [3, 4]]
    assert held((12,), 3) == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]


def test_padding_stands_at_the_end_of_its_document():
    assert held((5,), 2) == [[0, 1, PAD, PAD], [2, 3, 4, PAD]]
    assert held((1,), 2) == [[0, PAD], [PAD, PAD]]


def test_several_documents():
    assert held((8, 3), 2) == [[0, 1, 6, 7, 8, PAD], [2, 3, 4, 5, 9, 10]]  # the file's own example
    assert held((1, 4, 6), 2) == [[0, PAD, 1, 4, 5, 6, PAD, PAD], [PAD, PAD, 2, 3, 7, 8, 9, 10]]
    layout = ZigzagLayout((8, 3), 2)
    assert layout.seqlens == (8, 4) and layout.cu_seqlens == (0, 8, 12) and layout.local_seqlens == (4, 2)
    assert layout.num_tokens == 12 and layout.num_local_tokens == 6
    assert layout.padded_positions(0).tolist() == [0, 1, 6, 7, 8, 11]
    assert layout.documents_in_order().tolist() == [0, 1, 6, 7, 8, 9, 2, 3, 4, 10, 11, 5]


def test_one_rank_keeps_the_order_of_the_pack():
    layout = ZigzagLayout((3, 1, 5))
    assert layout.seqlens == (3, 1, 5)
    assert layout.tokens_of(0).tolist() == layout.documents_in_order().tolist() == list(range(9))


@pytest.mark.parametrize(
    ("lengths", "context", "tensor", "seqlens"),
    [
        ((3, 1, 5), 1, 1, (3, 1, 5)),
        ((3, 1, 5), 1, 4, (3, 1, 5, 3)),  # documents as they are, 9 tokens up to 12
        ((8,), 2, 2, (8,)),  # lcm(4, 4)
        ((3,), 2, 3, (4, 8)),  # lcm(4, 6)
        ((3, 9), 2, 3, (4, 12, 8)),
        ((5, 1), 4, 3, (8, 8, 8)),  # lcm(8, 12)
        ((7,), 3, 4, (12,)),  # lcm(6, 12)
        ((), 1, 1, (1,)),
        ((), 2, 1, (4,)),
        ((), 2, 3, (12,)),
    ],
)
def test_padded_lengths(lengths, context, tensor, seqlens):
    assert ZigzagLayout(lengths, context, tensor).seqlens == seqlens


@pytest.mark.parametrize(
    ("context", "tensor", "expected"),
    [(1, 1, (1, 1)), (1, 8, (1, 8)), (2, 1, (4, 4)), (2, 2, (4, 4)), (2, 3, (4, 12)), (4, 8, (8, 32)), (3, 2, (6, 6))],
)
def test_padding_multiples(context, tensor, expected):
    assert padding_multiples(context, tensor) == expected


def test_an_empty_pack_is_all_padding():
    layout = ZigzagLayout((), 2, 3)
    assert held((), 2, 3) == [[PAD] * 6] * 2
    parts = [layout.shard(torch.empty(0, 7), rank, 2.5) for rank in range(2)]
    assert all(part.shape == (6, 7) and part.eq(2.5).all() for part in parts)
    assert layout.unshard(parts).shape == (0, 7)
    assert [found.tolist() for found in layout.find(torch.empty(0, dtype=torch.int64))] == [[], []]


def test_shards_of_labels_and_states():
    layout = ZigzagLayout((5, 2), 2)
    labels = torch.tensor([10, 11, 12, 13, 14, 20, 21])
    assert layout.shard(labels, 0, -100).tolist() == [10, 11, -100, -100, 20, -100]
    assert layout.shard(labels, 1, -100).tolist() == [12, 13, 14, -100, 21, -100]
    states = torch.arange(14.0).view(7, 2).requires_grad_()
    part = layout.shard(states, 1, 0.0)
    assert part.tolist() == [[4, 5], [6, 7], [8, 9], [0, 0], [12, 13], [0, 0]]
    part.sum().backward()
    assert states.grad is not None and states.grad[:, 0].tolist() == [0, 0, 1, 1, 1, 0, 1]


@given(layouts())
def test_lengths_are_multiples_and_least(layout):
    context, tensor = layout.context_parallel_size, layout.tensor_model_parallel_size
    document = 2 * context if context > 1 else 1
    pack = lcm(document, context * tensor)
    assert all(length % document == 0 for length in layout.seqlens)
    assert layout.num_tokens % pack == 0 and layout.num_local_tokens % tensor == 0
    assert sum(layout.local_seqlens) == layout.num_local_tokens
    for length, padded in zip(layout.lengths, layout.seqlens, strict=False):
        assert 0 <= padded - length < document
    extra = layout.seqlens[len(layout.lengths) :]
    assert len(extra) <= 1 and (not layout.lengths or sum(extra) < pack)


@given(layouts())
def test_every_token_is_held_once(layout):
    tokens = torch.cat([layout.tokens_of(rank) for rank in range(layout.context_parallel_size)])
    assert len(tokens) == layout.num_tokens
    assert sorted(tokens[tokens >= 0].tolist()) == list(range(sum(layout.lengths)))
    for rank in range(layout.context_parallel_size):
        assert len(layout.tokens_of(rank)) == layout.num_local_tokens


@given(layouts())
def test_shares_in_order_are_the_padded_pack(layout):
    positions = torch.cat([layout.padded_positions(rank) for rank in range(layout.context_parallel_size)])
    assert torch.equal(positions[layout.documents_in_order()], torch.arange(layout.num_tokens))


@given(layouts())
def test_a_rank_holds_its_tokens_document_by_document_in_rising_order(layout):
    ends = torch.tensor(layout.cu_seqlens[1:])
    for rank in range(layout.context_parallel_size):
        positions = layout.padded_positions(rank)
        assert (positions.diff() > 0).all()
        of_document = torch.searchsorted(ends, positions, right=True).bincount(minlength=len(ends))
        assert tuple(of_document.tolist()) == layout.local_seqlens


@given(layouts())
def test_all_ranks_have_the_same_work(layout):
    """Pairs of a query and a key it sees under a causal mask, padding included; one token each would not do that."""
    starts = torch.tensor(layout.cu_seqlens)
    pairs: set[int] = set()
    for rank in range(layout.context_parallel_size):
        positions = layout.padded_positions(rank)
        document = torch.searchsorted(starts, positions, right=True) - 1
        pairs.add(int((positions - starts[document] + 1).sum()))
    assert len(pairs) == 1


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


@given(layouts(), st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES), st.integers(0, 1))
def test_shares_put_together_are_the_pack(layout, trailing, dtype, fill):
    values = torch.randint(0, 2, (sum(layout.lengths), *trailing)).to(dtype)
    before = values.clone()
    parts = [layout.shard(values, rank, fill) for rank in range(layout.context_parallel_size)]
    for rank, part in enumerate(parts):
        assert part.dtype == dtype and part.shape == (layout.num_local_tokens, *trailing)
        assert part[layout.tokens_of(rank) < 0].eq(fill).all()
    whole = layout.unshard(parts)
    assert whole.dtype == dtype and torch.equal(whole, values) and torch.equal(values, before)


@given(layouts(), st.data())
def test_find_agrees_with_what_ranks_hold(layout, data):
    number = sum(layout.lengths)
    asked = data.draw(st.lists(st.integers(0, number - 1), max_size=20)) if number else []
    ranks, indices = layout.find(torch.tensor(asked, dtype=torch.int64))
    assert ranks.dtype == indices.dtype == torch.int64
    for token, rank, index in zip(asked, ranks.tolist(), indices.tolist(), strict=True):
        assert layout.tokens_of(rank)[index] == token


@settings(max_examples=30)
@given(layouts())
def test_a_window_is_the_padded_length_at_most(layout):
    again = {
        "lengths": layout.lengths,
        "context_parallel_size": layout.context_parallel_size,
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
    }
    assert ZigzagLayout(**again, window=layout.num_tokens).seqlens == layout.seqlens
    with pytest.raises(LayoutError, match=f" {layout.num_tokens} tokens long .* window of {layout.num_tokens - 1}$"):
        ZigzagLayout(**again, window=layout.num_tokens - 1)


def test_a_pack_beyond_its_window_is_refused():
    message = (
        "a pack of 9 tokens in 2 documents is 12 tokens long when padded for context_parallel_size 2 x "
        "tensor_model_parallel_size 3, more than the window of 10"
    )
    with pytest.raises(LayoutError, match=message):
        ZigzagLayout((4, 5), 2, 3, window=10)


@pytest.mark.parametrize("length", [0, -3])
def test_a_document_without_tokens_is_refused(length):
    with pytest.raises(LayoutError, match=f"document 1 of the pack has {length} tokens"):
        ZigzagLayout((4, length, 2), 2)


@pytest.mark.parametrize("number", [0, 6, 8])
def test_values_of_another_length_are_refused(number):
    with pytest.raises(LayoutError, match=f"{number} values to shard, but documents of 7 tokens"):
        ZigzagLayout((5, 2), 2).shard(torch.zeros(number, 3), 0, 0.0)


@pytest.mark.parametrize("shares", [[6], [6, 5], [6, 6, 6], [7, 7], []], ids=str)
def test_wrong_shares_are_refused(shares):
    found = str(shares).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(LayoutError, match=f"shares of {found} tokens, expected 2 of 6"):
        ZigzagLayout((5, 2), 2).unshard([torch.zeros(length) for length in shares])


def test_sharding_before_shifting_labels_is_not_the_same():
    """Why labels are shifted first: the last token of a chunk would learn a token of another chunk."""
    layout, ids = ZigzagLayout((8,), 2), torch.arange(8)
    shifted = layout.shard(torch.cat([ids[1:], torch.tensor([-100])]), 0, -100)
    assert shifted.tolist() == [1, 2, 7, -100]
    assert layout.shard(ids, 0, -100)[1:].tolist() == [1, 6, 7]
