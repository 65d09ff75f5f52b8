"""The tower's parts: position embedding on other grids, which layer is returned, stochastic depth."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from helpers import oracles
from megatron_v2pe.families.internvit.tower import resize_position_embedding
from megatron_v2pe.models.drop_path import DropPathKey, keep_factors, layer_rates

LIKE = torch.zeros(1, dtype=torch.float64)
MANY = 200_000
"""Tiles; the mean of so many factors strays by about 0.001, four standard deviations are allowed."""


def embedding(grid, dtype=torch.float32, width=5):
    generator = torch.Generator().manual_seed(grid)
    return torch.randn(1, 1 + grid * grid, width, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("grid", [1, 4, 7])
def test_equal_grids_leave_the_embedding_as_it_is(grid, dtype):
    stored = embedding(grid, dtype)
    before = stored.clone()
    assert resize_position_embedding(stored, grid, grid) is stored
    assert torch.equal(stored, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (2, 2), (4, 7), (6, 4), (1, 9)])
def test_another_grid_is_bicubic_in_float32(rows, columns, dtype):
    stored = embedding(4, dtype)
    resized = resize_position_embedding(stored, rows, columns)
    assert resized.dtype == dtype and resized.shape == (1, 1 + rows * columns, 5)
    assert torch.equal(resized[:, 0], stored[:, 0])  # class token
    for channel in range(5):  # one channel at a time, as a picture
        picture = stored[0, 1:, channel].float().reshape(1, 1, 4, 4)
        expected = F.interpolate(picture, size=(rows, columns), mode="bicubic", align_corners=False)
        assert torch.equal(resized[0, 1:, channel], expected.flatten().to(dtype))


def test_rows_and_columns_are_not_confused():
    ramp = torch.arange(4.0).repeat_interleave(4)  # grows from row to row
    stored = torch.cat([torch.zeros(1), ramp]).view(1, 17, 1)
    resized = resize_position_embedding(stored, 8, 4)[0, 1:, 0].view(8, 4)
    assert (resized == resized[:, :1]).all() and (resized.diff(dim=0) > 0).all()


def test_gradients_reach_the_stored_embedding():
    stored = embedding(4).requires_grad_()
    resize_position_embedding(stored, 6, 6).sum().backward()
    assert torch.equal(stored.grad[0, 0], torch.ones(5))  # type: ignore[index]
    assert (stored.grad[0, 1:] != 0).all()  # type: ignore[index]


def test_select_layer_counts_hidden_states_embeddings_first(pools, golden):
    """Three layers give four hidden states."""
    expected = {-1: 3, -2: 2, -3: 1, -4: 0, 0: 0, 1: 1, 2: 2, 3: 3}
    checkpoint = str(golden / "reference_checkpoint")
    found = pools[1].run(oracles.layers_run, checkpoint=checkpoint, select_layers=list(expected))[0]
    assert [run for run, _ in found] == list(expected.values())
    assert [unused for _, unused in found] == [set(range(run, 3)) for run in expected.values()]


@pytest.mark.parametrize(("rate", "layers"), [(0.1, 24), (0.4, 45), (0.0, 3), (0.1, 1), (0.3, 2)])
def test_rates_grow_linearly_from_zero(rate, layers):
    rates = layer_rates(rate, layers)
    assert rates == torch.linspace(0, rate, layers).tolist()
    expected = [rate * layer / max(layers - 1, 1) for layer in range(layers)]
    assert rates == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_a_path_is_dropped_or_divided_by_its_probability_of_being_kept(rate):
    factors = keep_factors(DropPathKey(3, 0), 5, rate, MANY, LIKE)
    assert factors.shape == (2, MANY)
    assert set(factors.unique().tolist()) == {0.0, 1 / (1 - rate)}
    for path in factors:
        deviation = (rate / (1 - rate) / MANY) ** 0.5
        assert abs(path.mean().item() - 1) < 4 * deviation


def test_a_rank_takes_its_own_tiles_out_of_the_packs_draws():
    whole = keep_factors(DropPathKey(1, 2), 3, 0.5, 10, torch.zeros(1))
    part = keep_factors(DropPathKey(1, 2, num_tiles=10, first_tile=4), 3, 0.5, 3, torch.zeros(1))
    assert torch.equal(part, whole[:, 4:7])


def test_every_tile_draws_for_itself():
    factors = keep_factors(DropPathKey(3, 0), 5, 0.5, MANY, LIKE) > 0
    together = (factors[:, 1:] == factors[:, :-1]).double().mean(1)  # neighbours agree as often as two coins
    assert ((together - 0.5).abs() < 0.005).all()


def test_nothing_is_dropped_at_rate_zero():
    assert torch.equal(keep_factors(DropPathKey(0, 0), 0, 0.0, 64, LIKE), torch.ones(2, 64, dtype=torch.float64))


def test_the_key_alone_decides():
    first = keep_factors(DropPathKey(7, 11), 2, 0.3, 1000, LIKE)
    torch.manual_seed(123)
    torch.rand(10)
    state = torch.get_rng_state()
    assert torch.equal(keep_factors(DropPathKey(7, 11), 2, 0.3, 1000, LIKE), first)
    assert torch.equal(torch.get_rng_state(), state)  # the generator of everything else is not touched


def test_seeds_packs_layers_and_paths_draw_independently():
    keys = itertools.product((0, 1), (0, 1, 2), (0, 1, 2))  # seed, pack, layer: also pack and layer exchanged
    rows = [keep_factors(DropPathKey(seed, pack), layer, 0.5, 4000, LIKE) for seed, pack, layer in keys]
    draws = torch.cat(rows) - 1  # 36 rows of -1 and 1
    correlation = draws @ draws.T / draws.shape[1]
    assert torch.equal(correlation.diagonal(), torch.ones(36, dtype=torch.float64))
    assert (correlation - torch.eye(36)).abs().max() < 5 * 4000**-0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_factors_are_the_same_draws_in_the_type_of_the_activations(dtype):
    factors = keep_factors(DropPathKey(1, 2), 3, 0.2, 100, torch.zeros(1, dtype=dtype))
    assert factors.dtype == dtype
    assert torch.equal(factors, keep_factors(DropPathKey(1, 2), 3, 0.2, 100, LIKE).to(dtype))
