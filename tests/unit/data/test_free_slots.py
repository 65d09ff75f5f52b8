"""Places that are taken one by one, against a plain list of those left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_v2pe.data.packing.free_slots import NO_LIMIT, FreeSlots, FreeSlotsByLoad


@given(st.lists(st.integers(0, 5), max_size=20), st.data())
def test_first_left_under_a_limit(loads, data):
    count = len(loads)
    chain, limited = FreeSlots(count), FreeSlotsByLoad(np.array(loads, dtype=np.int64))
    left = list(range(count))
    while True:
        for place in range(count + 1):
            assert chain.first(place, 0) == next((p for p in left if p >= place), count)
            for limit in (-1, 0, 2, 4, NO_LIMIT):
                expected = next((p for p in left if p >= place and loads[p] <= limit), count)
                assert limited.first(place, limit) == expected
        if not left:
            break
        taken = data.draw(st.sampled_from(left))
        left.remove(taken)
        chain.take(taken)
        limited.take(taken)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_all_taken_from_the_front(count):
    limited = FreeSlotsByLoad(np.zeros(count, dtype=np.int64))
    for place in range(count):
        assert limited.first(0, 0) == place
        limited.take(place)
    assert limited.first(0, NO_LIMIT) == count
