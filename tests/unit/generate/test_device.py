"""Everything of an opened model lies on the chosen device; a fake one shows it on a CPU, and so do planted breaks."""

from __future__ import annotations

import pytest
import torch

from helpers import one_device
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.generate.pretrained import ChatQuestion
from megatron_v2pe.generate.vision_cache import VisionCache
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset

CHOSEN = {str(one_device.CHOSEN)}


@pytest.fixture(scope="module")
def places(golden, pools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    hf_to_mcore(write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf"), folder / "megatron")
    write_dataset(folder / "data")
    image = str(folder / "data" / "image" / "3.png")
    questions = [
        ChatQuestion([("human", "what do you see")], [image], "a"),
        ChatQuestion([("human", "one two")], [], "b"),
    ]

    def run(planted_break=None):
        arguments = {"checkpoint": folder / "megatron", "questions": questions, "planted_break": planted_break}
        return pools[1].run(one_device.run, **arguments)[0]

    return run


def test_everything_lies_on_the_chosen_device(places):
    found = places()
    assert len(found.weights) > 50 and set(found.weights.values()) == CHOSEN
    assert len(found.lean) > 8 and set(found.lean.values()) == CHOSEN
    assert len(found.working) > 5 and set(found.working.values()) == CHOSEN
    assert found.mixed == [] and found.calls > 100


@pytest.mark.parametrize("planted_break", [name for name in one_device.BREAKS if name is not None])
def test_planted_break_is_seen(places, planted_break):
    found = places(planted_break)
    elsewhere = {*found.weights.values(), *found.lean.values(), *found.working.values()} - CHOSEN
    assert elsewhere or found.mixed


def test_tiles_are_hashed_before_they_are_moved():
    """A hash of a tile on the device would wait for the device, tile by tile."""
    with pytest.raises(AssertionError, match="before it is moved"):
        VisionCache().encode(torch.zeros(1, 4, 4, 3, dtype=torch.uint8, device="meta"), 1, lambda tiles: tiles)
