"""The stream of samples: repeats, shuffling by epoch, nothing dropped, nothing that depends on ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from megatron_v2pe.data.mixture import Mixture, repeated_length


@dataclass
class Fake:
    name: str
    lines: int
    repeat_time: float = 1.0
    weight: float | None = None

    def __len__(self):
        return self.lines


def epoch(mixture, number):
    start = number * mixture.epoch_length
    places = [mixture.locate(start + i) for i in range(mixture.epoch_length)]
    assert {place[2] for place in places} == {number}
    return [(dataset.name, line) for dataset, line, _, _ in places]


@pytest.mark.parametrize(
    ("lines", "repeat", "expected"), [(66, 1.251, 82), (60, 1, 60), (20, 0.5, 10), (5, 3, 15), (14, 2, 28), (3, 0.1, 1)]
)
def test_repeats(lines, repeat, expected):
    assert repeated_length(lines, repeat) == expected
    mixture = Mixture([Fake("a", lines, repeat)], seed=1)
    counts = Counter(line for _, line in epoch(mixture, 0))
    assert sum(counts.values()) == expected
    assert max(counts.values()) - min(counts.get(line, 0) for line in range(lines)) <= 1


def test_every_epoch_has_everything_in_a_new_order():
    mixture = Mixture([Fake("a", 50), Fake("b", 7, 2)], seed=1)
    first, second = epoch(mixture, 0), epoch(mixture, 1)
    assert Counter(first) == Counter(second)
    assert first != second
    assert [name for name, _ in first[:20]].count("b") < 14, "data sets are mixed"


def test_a_fraction_takes_other_lines_in_other_epochs():
    mixture = Mixture([Fake("a", 100, 0.3)], seed=1)
    assert {line for _, line in epoch(mixture, 0)} != {line for _, line in epoch(mixture, 1)}


def test_the_seed_decides():
    datasets = [Fake("a", 50)]
    assert epoch(Mixture(datasets, 1), 0) == epoch(Mixture(datasets, 1), 0)
    assert epoch(Mixture(datasets, 1), 0) != epoch(Mixture(datasets, 2), 0)
    assert Mixture(datasets, 1).fingerprint() != Mixture([Fake("a", 51)], 1).fingerprint()


def test_square_root_resampling():
    mixture = Mixture([Fake("large", 400), Fake("small", 100)], seed=1, by_square_root=True)
    counts = Counter(name for name, _ in epoch(mixture, 0))
    assert mixture.epoch_length in (500, 501)
    assert abs(counts["large"] / counts["small"] - 2) < 0.02
    assert len({line for name, line in epoch(mixture, 0) if name == "small"}) == 100


def test_weights_divide_an_epoch_and_lines_repeat_evenly():
    mixture = Mixture([Fake("a", 30, weight=1), Fake("b", 50, weight=3), Fake("c", 20, weight=1)], seed=1)
    counts = Counter(epoch(mixture, 0))
    per_set = Counter(name for name, _ in counts.elements())
    assert per_set == {"a": 20, "b": 60, "c": 20} and mixture.epoch_length == 100
    b = [counts[("b", line)] for line in range(50)]
    assert sorted(set(b)) == [1, 2], "60 of 50 lines: each once, ten twice"
    assert set(counts) != set(epoch(mixture, 1)), "another part of the smaller shares in every epoch"
