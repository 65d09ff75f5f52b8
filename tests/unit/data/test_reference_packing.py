"""What packing is held against: the bound never lies above the optimum, the reference packs as its worked example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_v2pe.workshop.measuring.lengths import drawn_lengths, read_lengths
from megatron_v2pe.workshop.measuring.reference_packing import l2_bound, reference_packs, two_budget_bound


def bound_by_definition(sizes, capacity):
    best = 0
    for threshold in range(capacity // 2 + 1):
        alone = [size for size in sizes if size > capacity - threshold]
        large = [size for size in sizes if capacity - threshold >= size > capacity / 2]
        small = [size for size in sizes if capacity / 2 >= size >= threshold]
        beyond = sum(small) - (len(large) * capacity - sum(large))
        best = max(best, len(alone) + len(large) + max(0, -(-beyond // capacity)))
    return best


@pytest.mark.parametrize(
    ("sizes", "capacity", "bound"),
    [
        ([], 10, 0),
        ([6, 6, 6], 10, 3),  # no two fit together, though 18 tokens would fit into two
        ([5, 5, 5], 10, 2),
        ([7, 6, 4, 4], 10, 3),  # one 4 fits beside the 6, the other nowhere
        ([10, 1], 10, 2),
        ([3, 3, 2], 5, 2),
    ],
)
def test_bound(sizes, capacity, bound):
    assert l2_bound(np.array(sizes, dtype=np.int64), capacity) == bound


@given(st.integers(1, 31).flatmap(lambda most: st.tuples(st.lists(st.integers(1, most), max_size=20), st.just(most))))
def test_bound_is_its_definition(drawn):
    sizes, capacity = drawn
    assert l2_bound(np.array(sizes, dtype=np.int64), capacity) == bound_by_definition(sizes, capacity)


def test_a_mean_of_two_budgets_can_say_more_than_either():
    tokens, tiles = np.array([5, 3, 7, 7, 1]), np.array([5, 6, 5, 5, 4])
    assert l2_bound(tokens, 10) == l2_bound(tiles, 10) == 3
    assert two_budget_bound(tokens, tiles, 10, 10) == 4  # which is the fewest there can be


def test_example():
    assert reference_packs([28, 10, 19, 42, 16, 8], [2, 0, 1, 3, 1, 1], 64, 6, 20) == [[0, 1, 2], [3, 4], [5]]


def test_the_pack_with_most_tiles_comes_first_and_leaves_first():
    tokens, tiles = [6, 6, 3, 3], [1, 2, 1, 1]
    # 2 goes beside 1, which has more tiles than 0 and no tile left for 3.
    assert reference_packs(tokens, tiles, 10, 3, 5) == [[1, 2], [0, 3]]
    assert reference_packs([6, 6, 6, 6], [1, 3, 2, 1], 10, 9, 2) == [[1], [2], [0], [3]]
    assert reference_packs([6, 4, 7], [1, 1, 1], 10, 9, 5) == [[0, 1], [2]], "a full pack leaves at once"


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), max_size=60), st.integers(1, 5))
def test_reference_packs_every_document_once(sizes, open_packs):
    packs = reference_packs([size[0] for size in sizes], [size[1] for size in sizes], 50, 9, open_packs)
    assert sorted(document for pack in packs for document in pack) == list(range(len(sizes)))
    for pack in packs:
        assert sum(sizes[document][0] for document in pack) <= 50
        assert sum(max(sizes[document][1], 1) for document in pack) <= 9


def test_lengths_are_read(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("# a remark, with a comma\nfamily,tokens,tiles\na,100,2\n# another\nb,7,0\n")
    tokens, tiles = read_lengths(path)
    assert tokens.tolist() == [100, 7] and tiles.tolist() == [2, 0] and tokens.dtype == np.int64
    path.write_text("tokens\n5\n")
    with pytest.raises(ValueError, match="no column tiles"):
        read_lengths(path)
    path.write_text("tokens,tiles\n5,x\n")
    with pytest.raises(ValueError, match="invalid literal"):
        read_lengths(path)


def test_drawn_lengths_are_those_of_the_seed():
    tokens, tiles = drawn_lengths(1000, seed=3)
    assert len(tokens) == len(tiles) == 1000
    assert np.all(tokens >= 64) and np.all(tokens <= 33_000) and np.all(tiles * 256 <= tokens)
    assert 17_000 < tokens.mean() < 21_000
    assert all(np.array_equal(*pair) for pair in zip(drawn_lengths(1000, seed=3), (tokens, tiles), strict=True))
