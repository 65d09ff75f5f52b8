"""Positions for models of `transformers`: the exact ones, each rounded once to float32."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.v2pe.position_ids import position_ticks
from megatron_v2pe.v2pe.transformers_positions import transformers_positions

IMAGE = 7


def prompt(*runs):
    """Text and images in turn: numbers of tokens."""
    return torch.tensor([token for number, count in enumerate(runs) for token in [IMAGE if number % 2 else 1] * count])


@pytest.mark.parametrize("stride", [256, 64, 1, "1/2", 0.5, Fraction(1, 3)])
def test_they_are_those_of_the_ticks(stride):
    ids = prompt(3, 512, 2, 256, 4)
    images, exact = [(3, 2), (517, 1)], Fraction(str(stride))
    ticks = position_ticks(len(ids), images, [exact, exact], 256)
    found = transformers_positions(ids, image_token_id=IMAGE, stride=stride)
    assert found.dtype == torch.float32 and found.shape == (1, len(ids))
    assert found[0].tolist() == [
        torch.tensor(Fraction(tick, ticks.denominator).__float__(), dtype=torch.float32).item()
        for tick in ticks.values.tolist()
    ]


def test_a_batch_with_padding_and_a_stride_for_each_image():
    first, second = prompt(2, 4, 3), prompt(1, 8, 0)
    ids = torch.stack([first, second])
    mask = torch.ones_like(ids)
    mask[0, :1] = 0  # left padding
    found = transformers_positions(ids, image_token_id=IMAGE, stride=[1, 2], tokens_per_tile=4, attention_mask=mask)
    assert found[0].tolist() == [1, 0, 0.25, 0.5, 0.75, 1, 2, 3, 4]
    assert found[1].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    alone = transformers_positions(first[1:], image_token_id=IMAGE, stride=1, tokens_per_tile=4)
    assert found[0, 1:].tolist() == alone[0].tolist()


@pytest.mark.parametrize(("text", "largest"), [(65_000, 0.0), (1_000_000, 1 / 32)])
def test_how_exact_they_are(text, largest):
    ids = prompt(text, 256, 10)
    ticks = position_ticks(len(ids), [(text, 1)], [1], 256)
    found = transformers_positions(ids, image_token_id=IMAGE, stride=1)[0]
    error = (found.double() - ticks.values.double() / ticks.denominator).abs().max().item()
    assert error <= largest and (error > largest / 2 or not largest)


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match="5 image tokens from index 2 on are no whole number of tiles of 4 tokens"):
        transformers_positions(prompt(2, 5, 1), image_token_id=IMAGE, stride=1, tokens_per_tile=4)
    with pytest.raises(DataError, match="3 strides for 1 images"):
        transformers_positions(prompt(2, 4, 1), image_token_id=IMAGE, stride=[1, 2, 3], tokens_per_tile=4)
    with pytest.raises(ConfigError, match="rope_pos_id_stride 'wide'"):
        transformers_positions(prompt(2, 4, 1), image_token_id=IMAGE, stride="wide", tokens_per_tile=4)


def test_it_needs_neither_megatron_nor_transformers():
    code = (
        "import sys; import megatron_v2pe.v2pe.transformers_positions; "
        "print([name for name in ('megatron', 'transformers', 'megatron_v2pe.models') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
