"""Rotary angles: the reference's vectors, arbitrary-precision arithmetic, scaling decided per document."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from position_documents import document
from torch import Tensor

from megatron_v2pe.errors import ConfigError, LayoutError
from megatron_v2pe.kernels.rotary import apply_rotary
from megatron_v2pe.v2pe.position_ids import Ticks, position_ticks
from megatron_v2pe.v2pe.rope_scaling import DynamicScaling, LinearScaling, NoScaling, plain_frequencies
from megatron_v2pe.v2pe.rotary import RotaryEmbedding

THETA = 1e6
PLAIN = RotaryEmbedding(128, THETA, 256)
SCALING = DynamicScaling(2.0, 32768)
DYNAMIC = RotaryEmbedding(128, THETA, 256, SCALING)


def cos_sin_of(rotary: RotaryEmbedding, ticks: torch.Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """Angles of ticks that are counted as the module counts them."""
    return rotary.cos_sin(Ticks(ticks, rotary.denominator), *others, **named)


def exact(tick: int, denominator: int, base: float = THETA) -> tuple[list[float], list[float]]:
    """Cosines and sines at 60 digits."""
    with mpmath.workdps(60):
        position = mpmath.mpf(tick) / denominator
        angles = [position * mpmath.mpf(base) ** (-mpmath.mpf(2 * i) / 128) for i in range(64)]
        return [float(mpmath.cos(angle)) for angle in angles], [float(mpmath.sin(angle)) for angle in angles]


def largest_error(ticks: list[int], cos: torch.Tensor, sin: torch.Tensor, denominator: int = 256) -> float:
    worst = 0.0
    for row, tick in enumerate(ticks):
        for ours, true in zip((cos[row], sin[row]), exact(tick, denominator), strict=True):
            worst = max(worst, (ours.double() - torch.tensor(true, dtype=torch.float64)).abs().max().item())
    return worst


def test_reference_vector():
    """The reference forms frequencies and angles in float32: its own rounding is what the tolerances allow."""
    frequencies = plain_frequencies(128, THETA)
    assert frequencies.dtype == torch.float64
    expected = torch.tensor([1.0, 0.80584222, 0.64938164, 0.52329916], dtype=torch.float64)
    assert (frequencies[:4] - expected).abs().max() < 6e-8  # measured 4.5e-8
    assert abs(frequencies[63] - 1.24093776e-6) < 1e-13
    cos, sin = cos_sin_of(PLAIN, torch.tensor([1088]))  # position 4.25
    assert cos.dtype == sin.dtype == torch.float32
    assert (cos[0, :3] - torch.tensor([-0.44608748, -0.96015590, -0.92802501])).abs().max() < 3e-7  # measured 6e-8
    assert (sin[0, :3] - torch.tensor([-0.89498937, -0.27946496, 0.37251788])).abs().max() < 3e-7  # measured 1.8e-7
    assert cos[0, :3].bfloat16().tolist() == [-0.4453125, -0.9609375, -0.9296875]
    query = ((torch.arange(128) + 1) / 128).view(1, 1, 128)
    rotated = apply_rotary(query, cos, sin)[0, 0]
    expected = torch.tensor([0.45100173, 0.12909669, 0.49999472, -0.23352090])
    assert (rotated[[0, 1, 63, 64]] - expected).abs().max() < 3e-7  # measured 9e-8


TICKS = [0, 1, 255, 1088, 65_536 * 256 + 1, 1_000_000 * 256 + 77, 1_048_575 * 256 + 255, 4_194_303 * 256 + 129]


def test_cosines_and_sines_against_arbitrary_precision():
    """Half a unit of float32's last place is 3.0e-8, to position four million; measured 2.98e-8."""
    cos, sin = cos_sin_of(PLAIN, torch.tensor(TICKS))
    assert largest_error(TICKS, cos, sin) < 3.1e-8


def test_angles_are_formed_in_float64():
    """The same position with float32 angles, or a bf16 table: measured errors 2.1e-2 and 1.9e-3."""
    tick = 1_000_000 * 256 + 77
    frequencies = plain_frequencies(128, THETA).float()
    angles = (torch.tensor(tick).double() / 256).float() * frequencies
    assert largest_error([tick], angles.cos()[None], angles.sin()[None]) > 1e-2
    cos, sin = cos_sin_of(PLAIN, torch.tensor([tick]))
    assert largest_error([tick], cos.bfloat16(), sin.bfloat16()) > 1e-3
    assert largest_error([tick], cos, sin) < 3.1e-8


def test_angle_error_at_one_million_in_float64():
    """Measured 5.1e-11 rad; float32 angles are off by 6.8e-2 there."""
    tick = 1_048_575 * 256 + 255
    angles = torch.tensor(tick, dtype=torch.float64) * (plain_frequencies(128, THETA) / 256)
    with mpmath.workdps(60):
        true = [mpmath.mpf(tick) / 256 * mpmath.mpf(THETA) ** (-mpmath.mpf(2 * i) / 128) for i in range(64)]
        errors = [abs(float(mpmath.mpf(ours) - theirs)) for ours, theirs in zip(angles.tolist(), true, strict=True)]
    assert max(errors) < 2e-10


def test_a_finer_lattice_gives_the_same_rotation():
    ticks = torch.tensor(TICKS)
    for finer in (3, 7):
        cos, sin = cos_sin_of(RotaryEmbedding(128, THETA, 256 * finer), ticks * finer)
        for ours, theirs in zip((cos, sin), cos_sin_of(PLAIN, ticks), strict=True):
            assert (ours - theirs).abs().max() < 1e-7  # measured 0


def test_neighbours_far_out_keep_distinct_rotations():
    """Two image tokens 1/256 apart at one million: float32 positions cannot tell them apart, the rotation does."""
    ticks = 1_048_576 * 256 + torch.arange(256)
    cos, sin = cos_sin_of(PLAIN, ticks)
    assert len(torch.stack([cos[:, 0], sin[:, 0]], 1).unique(dim=0)) == 256
    assert len((ticks / 256).float().unique()) < 20


@pytest.mark.parametrize(
    ("length", "base"), [(32768, 1e6), (34000, 1076433.4), (65536, 3052773.7), (131072, 7219586.0)]
)
def test_dynamic_base(length, base):
    assert abs(SCALING.base_at(128, THETA, length) - base) < 0.05
    assert torch.equal(NoScaling().frequencies(128, THETA, length), plain_frequencies(128, THETA))


def ticks_of(length: int) -> torch.Tensor:
    return torch.arange(length) * 256


def test_dynamic_scaling_is_decided_for_each_document():
    """A long neighbour does not change a short document, in either order."""
    short, long = ticks_of(1000), ticks_of(34000)
    cos_short, _ = cos_sin_of(PLAIN, short)
    scaled = RotaryEmbedding(128, SCALING.base_at(128, THETA, 34000), 256)
    cos_long, sin_long = cos_sin_of(scaled, long)
    for order in ([short, long], [long, short]):
        cos, sin = cos_sin_of(DYNAMIC, torch.cat(order), [len(part) for part in order])
        cos_parts = dict(zip(map(len, order), cos.split([len(part) for part in order]), strict=True))
        assert torch.equal(cos_parts[1000], cos_short)
        assert torch.equal(cos_parts[34000], cos_long)
    assert torch.equal(cos_sin_of(DYNAMIC, long)[1], sin_long)


def test_dynamic_scaling_goes_by_positions_not_tokens():
    """34,000 positions in few tokens are 34,000 positions: the length is the largest position plus 1."""
    ticks = torch.tensor([0, 33_999 * 256])
    expected = cos_sin_of(RotaryEmbedding(128, SCALING.base_at(128, THETA, 34000), 256), ticks)
    assert all(torch.equal(*pair) for pair in zip(cos_sin_of(DYNAMIC, ticks), expected, strict=True))


def test_generation_keeps_the_scaling_of_the_prompt():
    """Decoded past the limit one by one, tokens and cached keys keep one base; without it the base would move."""
    prompt = cos_sin_of(DYNAMIC, ticks_of(34000), last_ticks=[33_999 * 256])[0]
    later = cos_sin_of(DYNAMIC, ticks_of(34010), last_ticks=[33_999 * 256])[0]
    assert torch.equal(later[:34000], prompt)
    assert not torch.equal(cos_sin_of(DYNAMIC, ticks_of(34010))[0][:34000], prompt)
    unscaled = cos_sin_of(DYNAMIC, ticks_of(34010), last_ticks=[99 * 256])[0]
    assert torch.equal(unscaled, cos_sin_of(PLAIN, ticks_of(34010))[0])


def test_a_part_of_a_document_is_scaled_as_the_whole():
    """A context-parallel rank holds some tokens of a long document; the base is that of all of them."""
    whole, part = ticks_of(34000), torch.arange(34000)[5000:9000]
    expected = cos_sin_of(DYNAMIC, whole)[0][5000:9000]
    assert torch.equal(cos_sin_of(DYNAMIC, whole[part], [4000], [33_999 * 256])[0], expected)
    assert not torch.equal(cos_sin_of(DYNAMIC, whole[part])[0], expected)


def test_linear_scaling_divides_positions():
    linear = RotaryEmbedding(128, THETA, 256, LinearScaling(4.0))
    ticks = ticks_of(5000)
    for ours, plain in zip(cos_sin_of(linear, ticks * 4, [3, 4997]), cos_sin_of(PLAIN, ticks), strict=True):
        assert torch.equal(ours, plain)


def test_a_full_stride_is_plain_rope():
    """Stride 256 of 256 tokens: ordinary positions, and the textbook table at float32."""
    length, images = document([4, (3,), 2, (1,), 3], 256)
    ticks = position_ticks(length, images, [256, 256], 256)
    cos, sin = RotaryEmbedding(128, THETA, ticks.denominator).cos_sin(ticks)
    frequencies = 1.0 / THETA ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    table = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    assert (cos - table.cos().float()).abs().max() < 1e-7
    assert (sin - table.sin().float()).abs().max() < 1e-7


def test_chunks_make_no_difference():
    ticks = torch.arange(65_536 + 100) * 3 + 11
    cos, sin = cos_sin_of(PLAIN, ticks)
    last_cos, last_sin = cos_sin_of(PLAIN, ticks[-200:])
    assert torch.equal(cos[-200:], last_cos) and torch.equal(sin[-200:], last_sin)


def test_rotation_pairs_halves_keeps_norms_and_types():
    ticks = torch.tensor([5, 300, 70_000])
    cos, sin = cos_sin_of(RotaryEmbedding(8, 10_000.0, 256), ticks)
    states = torch.randn(3, 2, 8, dtype=torch.float64)
    rotated = apply_rotary(states, cos, sin)
    assert rotated.dtype == torch.float64
    assert (rotated.norm(dim=-1) - states.norm(dim=-1)).abs().max() < 1e-6
    pairs = torch.complex(states[..., :4], states[..., 4:]) * torch.complex(cos, sin).unsqueeze(1)
    assert (torch.cat([pairs.real, pairs.imag], -1) - rotated).abs().max() < 1e-12
    assert apply_rotary(states.bfloat16(), cos, sin).dtype == torch.bfloat16


def test_bf16_states_meet_float32_tables():
    """The product is formed in float32 and rounded once: no error beyond half a unit of the result."""
    ticks = torch.tensor([1_000_000 * 256 + 77])
    cos, sin = cos_sin_of(PLAIN, ticks)
    states = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(apply_rotary(states, cos, sin), apply_rotary(states.float(), cos, sin).bfloat16())


def test_relative_positions_only():
    """Scores depend on the distance of two positions, also between an image and text four million apart."""
    query, key = torch.randn(2, 1, 1, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(first: int, second: int) -> float:
        rotated = [
            apply_rotary(states, *cos_sin_of(PLAIN, torch.tensor([tick])))
            for states, tick in ((query, first), (key, second))
        ]
        return (rotated[0] * rotated[1]).sum().item()

    for offset in (256, 65_536 * 256, 4_000_000 * 256):
        assert abs(score(1088 + offset, 77 + offset) - score(1088, 77)) < 1e-5  # float32 tables; measured 7e-7


def test_odd_heads_are_refused():
    with pytest.raises(ConfigError, match="even head width, got 65"):
        RotaryEmbedding(65, THETA, 256)


def test_ticks_of_another_denominator_make_no_angles():
    """The planted fault: taken for ticks of 1/256, positions would silently be twice as far apart."""
    with pytest.raises(LayoutError, match=r"3 positions are counted in ticks of 1/512, expected ticks of 1/256"):
        PLAIN.cos_sin(Ticks(torch.arange(3) * 512, 512))


def test_documents_of_two_denominators_are_not_joined():
    coarse, fine = Ticks(torch.arange(2) * 4, 4), Ticks(torch.arange(3) * 8, 8)
    with pytest.raises(LayoutError, match=r"3 positions are counted in ticks of 1/8, expected ticks of 1/4"):
        Ticks.joined([coarse, fine], 4)
    both = Ticks.joined([coarse, coarse], 4)
    assert both.values.tolist() == [0, 4, 0, 4] and (both.denominator, len(both), both.last, both.reach) == (4, 4, 4, 2)
    assert len(Ticks.joined([], 4)) == 0 and Ticks.joined([], 4).denominator == 4
