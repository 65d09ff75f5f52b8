"""91 documents through the reference's own function: our positions are the same float32 numbers, bit for bit."""

from __future__ import annotations

import json
import random
from fractions import Fraction

import pytest
import torch
from position_documents import counted
from safetensors import safe_open

from megatron_v2pe.v2pe import position_ids
from megatron_v2pe.v2pe.position_ids import find_images, position_ticks, to_float32
from megatron_v2pe.v2pe.settings import PUBLISHED_STRIDES
from megatron_v2pe.workshop.measuring.float_positions import float_construction, miscounted

IMG_CONTEXT = 505


@pytest.fixture(scope="module")
def recorded(golden):
    """Tensors and metadata of the recorded cases."""
    with safe_open(golden / "positions.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def strides_of(case) -> list[int]:
    count, tokens = len(case["num_tiles"]), case["num_image_token"]
    if case["version"] == "v2pe_fix":
        return [case["stride"]] * count
    if case["version"] == "default":
        return [tokens] * count
    generator = random.Random(case["seed"])
    strides = [generator.choice(PUBLISHED_STRIDES) for _ in range(count)]
    assert strides[0] == case["first_random_stride"]
    return strides


def inputs_of(case, recorded):
    tensors, metadata = recorded
    ids, tokens = tensors[f"layout{case['layout']}.input_ids"], case["num_image_token"]
    start, end = int(metadata["img_start_id"]), int(metadata["img_end_id"])
    return len(ids), find_images(ids, case["num_tiles"], tokens, start, end, IMG_CONTEXT), strides_of(case), tokens


def differing(recorded) -> list[str]:
    """Names of the cases in which a bit differs."""
    tensors, metadata = recorded
    wrong = []
    for case in json.loads(metadata["cases"]):
        ours = to_float32(*counted(position_ticks(*inputs_of(case, recorded))))
        if not torch.equal(ours, tensors[case["key"]].to(torch.float32)):
            wrong.append(case["key"])
    return wrong


def test_all_recorded_cases_are_equal_bit_for_bit(recorded):
    cases = json.loads(recorded[1]["cases"])
    assert len(cases) == 91 and {case["version"] for case in cases} == {"default", "v2pe_fix", "v2pe_rnd"}
    assert differing(recorded) == []


def test_default_positions_are_whole_numbers_equal_as_integers(recorded):
    tensors, metadata = recorded
    for case in json.loads(metadata["cases"]):
        if case["version"] == "default":
            ticks, denominator = counted(position_ticks(*inputs_of(case, recorded)))
            assert not (ticks % denominator).any()
            assert torch.equal(ticks // denominator, tensors[case["key"]])


def test_a_planted_break_is_caught(recorded, monkeypatch):
    """An image whose first token advances by 1, or by nothing, does not pass."""
    right = position_ids._ticks_per_token
    monkeypatch.setattr(position_ids, "_ticks_per_token", lambda *args: right(*args) + 1)
    with_images = [case["key"] for case in json.loads(recorded[1]["cases"]) if case["num_tiles"]]
    assert differing(recorded) == with_images and len(with_images) == 90


def test_the_float_construction_here_is_the_reference_s(recorded):
    """The peer of the contrast tests and the benchmark: equal to the recording, and wrong where the original is."""
    tensors, metadata = recorded
    for case in json.loads(metadata["cases"]):
        theirs = float_construction(*inputs_of(case, recorded)).positions
        assert torch.equal(theirs, tensors[case["key"]].to(torch.float32)), case["key"]
    limits = json.loads(metadata["limits"])
    assert sum(limit["original"] == "ok" for limit in limits) == 2 and len(limits) == 8
    for limit in limits:
        tokens, [tiles] = limit["num_image_token"], limit["num_tiles"]
        images = [(limit["text_before"] + 1, tiles)]
        length = images[0][0] + tiles * tokens + 3
        theirs = float_construction(length, images, [limit["stride"]], tokens)
        assert (miscounted(theirs, images, tokens) == 0) == (limit["original"] == "ok"), limit
        ticks, denominator = counted(position_ticks(length, images, [limit["stride"]], tokens))
        assert len(ticks) == length
        assert Fraction(int(ticks[-4]), denominator) == limit["text_before"] + limit["stride"] * tiles
