"""What tools that ask a checkpoint refuse before anything is converted or loaded, and what they take."""

from __future__ import annotations

import argparse
import shutil

import pytest

from helpers.made_up_runs import make_run, write_state
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.device.launch import World
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.generate.load import add_checkpoint_arguments, load_request
from megatron_v2pe.v2pe.settings import parse_stride
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy

FIXED = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "4"}


@pytest.fixture(scope="module")
def start(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("opening")
    hf_to_mcore(write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf"), folder / "megatron")
    return folder


def requested(checkpoint, *words, world=World()):  # noqa: B008 (it is frozen)
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=type(checkpoint))
    add_checkpoint_arguments(parser)
    return load_request(parser.parse_args(["--checkpoint", str(checkpoint), *words]), world)


def test_a_run_is_asked_at_strides_as_it_was_trained(start, tmp_path):
    run = make_run(start / "megatron", tmp_path / "run", v2pe=FIXED)
    assert requested(run).model.v2pe.stride == 4
    stated = requested(run, "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "4")
    assert stated.stride == 4 and stated.at_stride(parse_stride("1/2")).stride == parse_stride("1/2")
    with pytest.raises(ConfigError, match="default was asked for, but the checkpoint was trained with v2pe_fix"):
        requested(run, "--rope_pos_id_version", "default")


def test_a_stride_for_a_run_that_was_trained_without(start, tmp_path):
    run = make_run(start / "megatron", tmp_path / "run")
    for checkpoint in (run, start / "megatron", start / "hf"):
        with pytest.raises(ConfigError, match="trained with rope_pos_id_version default"):
            requested(checkpoint, "--rope_pos_id_stride", "4")
        with pytest.raises(ConfigError, match="trained with rope_pos_id_version default"):
            requested(checkpoint).at_stride(4)


def test_a_damaged_state_is_refused_by_its_name_also_unverified(start, tmp_path):
    run = make_run(start / "megatron", tmp_path / "run", v2pe=FIXED)
    write_state(run / "iter_0000002", {"settings": {}, "iteration": 2})
    assert requested(run).model.v2pe.rope_pos_id_version == "default"  # a program of one's own, that states nothing
    write_state(run / "iter_0000002", {"settings": {"v2pe": {}}, "iteration": 2})
    with pytest.raises(CheckpointError, match="training_state.json: settings: section 'v2pe' is missing"):
        requested(run, "--no-verify")
    state = run / "iter_0000002" / "training_state.json"
    state.write_text(state.read_text() + " ")
    with pytest.raises(CheckpointError, match="training_state.json"):
        requested(run)


def test_a_template_that_cannot_be_asked_is_refused_before_a_conversion(golden, tmp_path):
    hf = write_checkpoint_copy(golden / "reference_checkpoint", tmp_path / "hf", template="phi3-chat")
    with pytest.raises(ConfigError, match=r"no token <\|end\|>"):
        requested(hf)


def test_heads_that_a_layout_cannot_divide_are_refused_before_anything_is_converted(start, tmp_path):
    """The checkpoint has two key-value heads; the folder has no weights, which nobody looks at."""
    (tmp_path / "hf").mkdir()
    for file in (start / "hf").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path / "hf")
    four = World(rank=0, local_rank=0, world_size=4)
    with pytest.raises(ConfigError, match="4 does not divide the 2 query groups.*take 2 with context_parallel_size 2"):
        requested(tmp_path / "hf", "--tensor-model-parallel-size", "4", world=four)
    words = ("--tensor-model-parallel-size", "2", "--context-parallel-size", "2")
    assert requested(tmp_path / "hf", *words, world=four).layout.context_parallel_size == 2
