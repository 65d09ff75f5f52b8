"""Recompute plans: which layers keep what, and that the older settings mean what they meant."""

from __future__ import annotations

import pytest

from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.models.transformer_config import ModelOptions


@pytest.mark.parametrize(
    ("plan", "kept"),
    [
        (RecomputePlan(0), [False, False, False]),
        (RecomputePlan(3), [False, False, False]),
        (RecomputePlan(3, 1), [False, False, True]),
        (RecomputePlan(3, 3), [True, True, True]),
        (RecomputePlan(2, 1), [False, True, False]),
        (RecomputePlan(1, 1), [True, False, False]),
    ],
)
def test_attention_is_kept_in_the_last_recomputed_layers(plan, kept):
    assert plan.keeps_attention(3) == kept
    assert ModelOptions(recompute_plan=plan).keeps_attention(3) == kept


@pytest.mark.parametrize("counts", [(1, 2), (-1,), (2, -1), (2, 1, -1)])
def test_counts_that_contradict_one_another(counts):
    with pytest.raises(AssertionError):
        RecomputePlan(*counts)


def test_settings_without_a_plan_mean_what_they_meant():
    options = ModelOptions(
        recompute_granularity="full",
        recompute_method="uniform",
        recompute_num_layers=2,
        keep_attention=True,
        recompute_vision=True,
    )
    assert options.decoder_recompute() == {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 2,
    }
    assert options.keeps_attention(3) == [True] * 3 and options.tower_layers_recomputed(24) == 24
    assert ModelOptions().keeps_attention(2) == [False] * 2 and ModelOptions().tower_layers_recomputed(24) == 0


@pytest.mark.parametrize(("layers", "stated"), [(0, (None, None, None)), (5, ("full", "block", 5))])
def test_a_plan_counts_in_place_of_the_settings(layers, stated):
    options = ModelOptions(
        recompute_granularity="selective", recompute_vision=True, recompute_plan=RecomputePlan(layers, 0, 7)
    )
    assert tuple(options.decoder_recompute().values()) == stated
    assert options.tower_layers_recomputed(24) == 7 and options.tower_layers_recomputed(3) == 3
    assert options.keeps_attention(8) == [False] * 8
