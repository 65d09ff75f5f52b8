"""Sampling against its definitions, written out token by token; and draws that depend on nothing but their key."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.generate.sampling import Sampling, choose, draw, point, probabilities

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5], [0.0, 0.0, 3.0, 0.0, -2.0]])


def by_definition(row, sampling):
    """Temperature, then top-k (ties of the last kept), then the fewest tokens that reach top-p."""
    weights = [math.exp(value / sampling.temperature) for value in row]
    order = sorted(range(len(row)), key=lambda token: -row[token])
    if sampling.top_k:
        least = row[order[min(sampling.top_k, len(row)) - 1]]
        order = [token for token in order if row[token] >= least]
    total = sum(weights[token] for token in order)
    kept, reached = [], 0.0
    for token in order:
        if reached >= sampling.top_p:
            break
        kept.append(token)
        reached += weights[token] / total
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(row))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("top_p", [0.2, 0.6, 0.9, 1.0])
def test_probabilities_are_those_of_the_definition(temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p)
    found = probabilities(LOGITS, sampling)
    for row, chances in zip(LOGITS.tolist(), found, strict=True):
        assert chances.tolist() == pytest.approx(by_definition(row, sampling), abs=1e-12)


def test_draw_inverts_the_running_sum():
    chances = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    points = [0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]
    found = [int(draw(chances, torch.tensor([at], dtype=torch.float64))) for at in points]
    assert found == [0, 0, 2, 2, 3, 3]


def test_greedy_takes_the_first_of_the_most_likely():
    assert choose(torch.tensor([[1.0, 3.0, 3.0], [5.0, 1.0, 2.0]]), Sampling(), ["a", "b"], [0, 0]) == [1, 0]


def test_a_choice_does_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 50, generator=generator)
    sampling, names = Sampling(1.3, 20, 0.95, seed=4), [f"sequence {i}" for i in range(20)]
    together = choose(logits, sampling, names, range(20))
    alone = [choose(logits[i : i + 1], sampling, [names[i]], [i])[0] for i in range(20)]
    assert together == alone
    assert together != choose(logits, Sampling(1.3, 20, 0.95, seed=5), names, range(20))


def test_frequencies_are_the_probabilities():
    sampling, count = Sampling(1.0, 0, 0.9), 4000
    expected = probabilities(LOGITS[:1], sampling)[0]
    tokens = choose(LOGITS[:1].expand(count, -1), sampling, ["one"] * count, range(count))
    found = torch.bincount(torch.tensor(tokens), minlength=5) / count
    assert (found - expected).abs().max() < 0.03  # four standard deviations of the largest; measured 0.006
    assert found[expected == 0].sum() == 0


def test_draws_are_keyed():
    assert point(1, "a", 2) == point(1, "a", 2)
    assert len({point(1, "a", 2), point(2, "a", 2), point(1, "b", 2), point(1, "a", 3)}) == 4
    assert all(0 <= point(0, "a", step) < 1 for step in range(100))


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Sampling(**settings)
