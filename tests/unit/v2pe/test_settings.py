"""Which stride an image gets: draws that depend on nothing but their key, policies that cannot be inconsistent."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.v2pe.position_ids import position_ticks
from megatron_v2pe.v2pe.settings import PUBLISHED_STRIDES, StridePolicy, V2PESettings, parse_stride

RANDOM = StridePolicy("v2pe_rnd", seed=5)


def test_draws_do_not_depend_on_order_or_workers():
    samples = range(200)
    in_order = {sample: RANDOM.draw(7, 256, epoch=0, sample=sample) for sample in samples}
    backwards = {sample: RANDOM.draw(7, 256, epoch=0, sample=sample) for sample in reversed(samples)}
    with ThreadPoolExecutor(4) as workers:
        drawn = workers.map(lambda sample: RANDOM.draw(7, 256, epoch=0, sample=sample), samples)
        by_workers = dict(zip(samples, drawn, strict=True))
    assert in_order == backwards == by_workers
    assert StridePolicy("v2pe_rnd", seed=5).draw(7, 256, epoch=0, sample=3) == in_order[3]


def test_draws_are_the_same_on_every_machine_and_release():
    """Written down once: a changed key would silently give a resumed run other positions."""
    assert StridePolicy("v2pe_rnd").draw(6, 256, epoch=0, sample=0) == [64, 128, 64, 256, 128, 16]


def test_an_image_keeps_its_stride_when_more_images_follow():
    assert RANDOM.draw(9, 256, epoch=1, sample=4)[:3] == RANDOM.draw(3, 256, epoch=1, sample=4)


def test_seed_epoch_sample_and_image_all_matter():
    base = RANDOM.draw(64, 256, epoch=0, sample=0)
    others = [
        StridePolicy("v2pe_rnd", seed=6).draw(64, 256, epoch=0, sample=0),
        RANDOM.draw(64, 256, epoch=1, sample=0),
        RANDOM.draw(64, 256, epoch=0, sample=1),
    ]
    assert len(set(base)) > 1
    for other in others:
        agreeing = sum(one == two for one, two in zip(base, other, strict=True))
        assert agreeing < 24  # 64 / 9 = 7 by chance, 24 is 6 standard deviations above


def chi_square(counts: Counter, total: int) -> float:
    expected = total / len(PUBLISHED_STRIDES)
    return sum((counts[stride] - expected) ** 2 / expected for stride in PUBLISHED_STRIDES)


@pytest.mark.parametrize("axis", ["image", "sample", "epoch"])
def test_draws_are_uniform(axis):
    """Chi-square of 9,000 draws over nine strides, 8 degrees of freedom: 99.9 % of uniform draws stay below 26.1."""
    total = 9000
    if axis == "image":
        drawn = RANDOM.draw(total, 256, epoch=0, sample=0)
    else:
        keys = [{"epoch": 0, "sample": 0, axis: number} for number in range(total)]
        drawn = [RANDOM.draw(1, 256, **key)[0] for key in keys]
    counts = Counter(drawn)
    assert set(counts) == set(PUBLISHED_STRIDES)
    assert chi_square(counts, total) < 26.1
    lopsided = Counter([*drawn[:-300], *[1] * 300])
    assert chi_square(lopsided, total) > 26.1  # three draws in a hundred always 1: seen


def test_fixed_and_ordinary_strides():
    assert StridePolicy("v2pe_fix", 64).draw(3, 256, epoch=0, sample=0) == [64, 64, 64]
    assert StridePolicy("default").draw(2, 256, epoch=9, sample=9) == [256, 256]
    assert StridePolicy("default", stride=3).draw(1, 49, epoch=0, sample=0) == [49]
    assert RANDOM.draw(0, 256, epoch=0, sample=0) == []


def test_one_lattice_for_all_strides_of_a_policy():
    halves = StridePolicy("v2pe_rnd", strides=(Fraction(1, 2), Fraction(2, 3), 5))
    assert halves.denominator(256) == 6 * 256
    assert RANDOM.denominator(256) == StridePolicy("default").denominator(256) == 256
    assert StridePolicy("v2pe_fix", Fraction(1, 2)).denominator(49) == 98
    for stride in halves.strides:
        assert position_ticks(300, [(1, 1)], [stride], 256, halves.denominator(256)).denominator == 1536


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"version": "v2pe"}, "rope_pos_id_version 'v2pe' is none of default, v2pe_fix, v2pe_rnd"),
        ({"version": "v2pe_fix"}, "v2pe_fix needs rope_pos_id_stride, for example 64"),
        ({"version": "v2pe_fix", "stride": 0}, "rope_pos_id_stride 0 is not positive"),
        ({"version": "v2pe_rnd", "strides": ()}, "v2pe_rnd has no strides to draw from"),
        ({"version": "v2pe_rnd", "strides": (1, -2)}, "rope_pos_id_stride -2 is not positive"),
    ],
)
def test_inconsistent_policies_cannot_be_made(arguments, words):
    with pytest.raises(ConfigError, match=words):
        StridePolicy(**arguments)


@pytest.mark.parametrize(
    ("text", "stride"),
    [("64", 64), (64, 64), ("1/2", Fraction(1, 2)), (0.5, Fraction(1, 2)), ("0.1", Fraction(1, 10)), ("4/2", 2)],
)
def test_strides_are_read_exactly(text, stride):
    read = parse_stride(text)
    assert read == stride and type(read) is type(stride)


@pytest.mark.parametrize("text", ["", "x", "1/0", "nan", "inf", "1/2/3", None, "0x10"])
def test_what_is_no_stride_is_refused(text):
    with pytest.raises(ConfigError, match=f"rope_pos_id_stride {text!r} is not a whole number or a fraction like 1/2"):
        parse_stride(text)


@pytest.mark.parametrize("text", ["0", "-1", "-1/2", -0.5])
def test_strides_are_positive(text):
    with pytest.raises(ConfigError, match=f"rope_pos_id_stride {text} is not positive"):
        parse_stride(text)


@pytest.mark.parametrize(
    ("version", "stride", "written"),
    [
        ("default", None, {}),
        ("v2pe_rnd", None, {}),
        ("v2pe_fix", 64, {"rope_pos_id_stride": 64}),
        ("v2pe_fix", "0.5", {"rope_pos_id_stride": 0.5}),
        ("v2pe_fix", "1/3", {"rope_pos_id_stride": "1/3"}),
    ],
)
def test_settings_go_into_a_configuration_and_come_back(version, stride, written):
    """What a run was set to is what a `config.json` states, and what it is read back as."""
    settings = V2PESettings.stated(version, stride)
    before = {"a": 1, "rope_pos_id_stride": 7, "llm_config": {"b": 2}}
    config = settings.written_into(before)
    fields = {"rope_pos_id_version": version}
    assert config == {"a": 1, **fields, **written, "llm_config": {"b": 2, **fields}}
    assert V2PESettings.from_config(config) == settings
    assert before == {"a": 1, "rope_pos_id_stride": 7, "llm_config": {"b": 2}}


def test_the_version_may_stand_in_either_place():
    inner = {"llm_config": {"rope_pos_id_version": "v2pe_fix"}, "rope_pos_id_stride": "2/4"}
    assert V2PESettings.from_config(inner) == V2PESettings("v2pe_fix", "1/2")
    top = {"rope_pos_id_version": "v2pe_rnd", **inner, "rope_pos_id_stride": None}
    assert V2PESettings.from_config(top) == V2PESettings("v2pe_rnd")
    assert V2PESettings.from_config({"rope_pos_id_stride": 64, "llm_config": {"b": 2}}) == V2PESettings()  # left over


def test_policies_are_made_of_settings():
    text = V2PESettings("v2pe_rnd", strides=("1/2", "4"))
    assert text.policy(5) == StridePolicy("v2pe_rnd", strides=(Fraction(1, 2), 4), seed=5)
    assert V2PESettings("v2pe_fix", "0.5").policy() == StridePolicy("v2pe_fix", Fraction(1, 2))
    assert V2PESettings("v2pe_fix", "0.5").in_config == V2PESettings.stated("v2pe_fix", 0.5)
    assert tuple(map(parse_stride, V2PESettings().strides)) == PUBLISHED_STRIDES


def test_another_version_drops_the_stride():
    fixed = V2PESettings("v2pe_fix", "64")
    assert fixed.overridden(None, None) == fixed and fixed.overridden("v2pe_fix", None) == fixed
    assert fixed.overridden("v2pe_rnd", None) == V2PESettings("v2pe_rnd")
    assert fixed.overridden(None, 0.25) == V2PESettings("v2pe_fix", "1/4")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (V2PESettings("v2pe_fix"), "v2pe_fix needs rope_pos_id_stride"),
        (V2PESettings("default", "4"), "rope_pos_id_stride 4 has no meaning with rope_pos_id_version default"),
    ],
)
def test_what_a_configuration_may_not_state(settings, words):
    with pytest.raises(ConfigError, match=words):
        settings.check_in_config()
