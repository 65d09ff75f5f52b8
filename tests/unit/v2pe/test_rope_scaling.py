"""Rotary scalings against those of transformers, their place in cosines and sines, and numbers that cannot be."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NoScaling,
    YarnScaling,
    plain_frequencies,
)
from megatron_v2pe.v2pe.rotary import RotaryEmbedding

TRAINED, REACH = 4096, 32768
SHORT, LONG = tuple(1 + pair / 64 for pair in range(32)), tuple(1.5 + pair**1.2 for pair in range(32))
LISTS = {"short_factor": list(SHORT), "long_factor": list(LONG)}
LONGROPE = LongRopeScaling(SHORT, LONG, TRAINED, 8.0)
FREQUENCY = 4e-7  # relative; measured 2.1e-7, the float32 rounding of transformers
CASES = [
    ("linear", {"factor": 3.0}, LinearScaling(3.0)),
    ("dynamic", {"factor": 6.0}, DynamicScaling(6.0, REACH)),
    ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, Llama3Scaling(8.0, 1.0, 4.0, TRAINED)),
    (
        "llama3",
        {"factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 9.0},
        Llama3Scaling(32.0, 0.5, 9.0, TRAINED),
    ),
    ("yarn", {"factor": 8.0}, YarnScaling(8.0, TRAINED)),
    (
        "yarn",
        {"factor": 40.0, "beta_fast": 20.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5},
        YarnScaling(40.0, TRAINED, 20.0, 2.0, mscale=1.0, mscale_all_dim=0.5),
    ),
    (
        "yarn",
        {"factor": 4.0, "truncate": False, "attention_factor": 1.25, "mscale": 2.0},
        YarnScaling(4.0, TRAINED, truncate=False, mscale=2.0, stated_attention_factor=1.25),
    ),
    ("yarn", {"factor": 1.0, "beta_fast": 1.0, "beta_slow": 1.0}, YarnScaling(1.0, TRAINED, 1.0, 1.0)),
    ("longrope", LISTS, LONGROPE),
    ("longrope", LISTS | {"factor": 2.0}, LongRopeScaling(SHORT, LONG, TRAINED, 2.0)),
    ("longrope", LISTS | {"attention_factor": 1.5}, LongRopeScaling(SHORT, LONG, TRAINED, 8.0, 1.5)),
    ("longrope", LISTS | {"factor": 1.0}, LongRopeScaling(SHORT, LONG, TRAINED, 1.0)),
]


@pytest.mark.parametrize("base", [10_000.0, 5e5])
@pytest.mark.parametrize(("kind", "numbers", "scaling"), CASES)
def test_frequencies_and_attention_factor_of_transformers(kind, numbers, scaling, base):
    """At lengths below and above the trained one, at its end, and one position beyond."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": kind, "rope_theta": base, **numbers}
    if kind in ("llama3", "yarn", "longrope"):
        parameters["original_max_position_embeddings"] = TRAINED
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": REACH}
    config = transformers.LlamaConfig(**sizes, rope_parameters=parameters)
    assert scaling.kind == kind
    for length in (1, TRAINED, TRAINED + 1, REACH, REACH + 1, 100_000):
        expected, factor = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=length)
        ours = scaling.frequencies(64, base, length)
        assert ours.dtype == torch.float64
        assert ((ours - expected) / expected).abs().max() < FREQUENCY
        assert scaling.attention_factor == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(("kind", "numbers", "scaling"), CASES)
def test_every_case_above_differs_from_plain_angles(kind, numbers, scaling):
    """So that a scaling which did nothing would be seen; a factor of 1 alone does nothing."""
    plain = plain_frequencies(64, 10_000.0)
    changed = ((scaling.frequencies(64, 10_000.0, 100_000) - plain) / plain).abs().max() > 1000 * FREQUENCY
    assert changed == (scaling != YarnScaling(1.0, TRAINED, 1.0, 1.0))


def test_the_attention_factor_multiplies_cosines_and_sines():
    factor = math.sqrt(1 + math.log(8) / math.log(TRAINED))
    ticks = Ticks(torch.arange(3000) * 7, 4)
    for length, divisors in ((4000, SHORT), (6000, LONG)):
        cos, sin = RotaryEmbedding(64, 1e4, 4, LONGROPE).cos_sin(ticks, last_ticks=[(length - 1) * 4])
        angles = (
            ticks.values.double()[:, None]
            / 4
            * plain_frequencies(64, 1e4)
            / torch.tensor(divisors, dtype=torch.float64)
        )
        assert (cos - factor * angles.cos()).abs().max() < 1e-7  # measured 6e-8: one float32 rounding
        assert (sin - factor * angles.sin()).abs().max() < 1e-7
        assert (cos.square() + sin.square() - factor**2).abs().max() < 5e-7  # measured 2.3e-7


def test_longrope_is_chosen_for_each_document_by_its_positions():
    """Two documents of few tokens: one ends at position 4095, the last that is short, the other a quarter beyond."""
    ends = (TRAINED - 1, TRAINED - 0.75)
    ticks = torch.tensor([0, 400, int(ends[0] * 4), 0, 400, int(ends[1] * 4)])
    rotary = RotaryEmbedding(64, 1e4, 4, LONGROPE)
    cos, _ = rotary.cos_sin(Ticks(ticks, 4), [3, 3])
    assert torch.equal(cos[:3], rotary.cos_sin(Ticks(ticks[:3], 4), last_ticks=[0])[0])
    assert torch.equal(cos[3:], rotary.cos_sin(Ticks(ticks[3:], 4), last_ticks=[REACH * 4])[0])
    assert (cos[1] - cos[4]).abs().max() > 0.5
    part = rotary.cos_sin(Ticks(ticks[:2], 4), [1, 1], [int(end * 4) for end in ends])[0]
    assert torch.equal(part[0], cos[0]) and torch.equal(part[1], cos[4])  # a rank holds a token of each document


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearScaling(0.5), "linear: factor 0.5 is below 1"),
        (lambda: DynamicScaling(2.0, 0), "dynamic needs the length .* found 0"),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0, 8192), "low_freq_factor is 4.0 and high_freq_factor 4.0"),
        (lambda: YarnScaling(4.0, 8192, 1.0, 32.0), "beta_slow is 32.0 and beta_fast 1.0"),
        (lambda: LongRopeScaling((1.0,), (1.0, 2.0), 4096, 2.0), "short_factor has 1 numbers, long_factor 2"),
        (lambda: LongRopeScaling((1.0,), (0.0,), 4096, 2.0), "is below 1e-6"),
        (lambda: LongRopeScaling((1.0,), (1.0,), 1, 2.0), "longrope needs the length .* found 1"),
        (lambda: LONGROPE.frequencies(128, 1e4, 1), "32 divisors, heads of width 128 have 64"),
    ],
)
def test_impossible_scalings_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_plain_positions_with_no_scaling():
    assert torch.equal(NoScaling().frequencies(64, 1e4, 1e9), plain_frequencies(64, 1e4))
    assert NoScaling().attention_factor == 1
