"""A run is asked as it was trained: what a run says and what its export says are the same, setting by setting.

Kind of fault: one tool reads how a run was trained and another forgets it, or a setting never reaches the export.
"""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from typing import Any, cast

import pytest
import torch
from PIL import Image

from helpers.made_up_runs import make_run, write_state
from megatron_v2pe.checkpoint.folder import TRAINING_STATE
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.trained import CARRIED, trained_config, trained_model
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.image_plan import plan_images
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.policy import inference_policy
from megatron_v2pe.generate.prompt import asked_with, checkpoint_tiling, encode_prompt
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy

STRIDE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "4"}
SETTINGS = {
    "stride": {"v2pe": STRIDE},
    "fraction": {"v2pe": {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "1/3"}},
    "random": {"v2pe": {"rope_pos_id_version": "v2pe_rnd"}},
    "template": {"data": {"template": "Hermes-2"}},
    "one_tile": {"data": {"dynamic_image_size": False}},
    "padded": {"data": {"dynamic_image_size": False, "pad2square": True}},
    "padded_tiles": {"data": {"pad2square": True}},
    "no_thumbnail": {"data": {"use_thumbnail": False}},
    "fewest": {"data": {"min_dynamic_patch": 3}},
    "most": {"data": {"max_dynamic_patch": 2}},
    "shared": {"data": {"dynamic_max_patch": True, "max_dynamic_patch": 7}},
    "shared_by_too_many": {"data": {"dynamic_max_patch": True, "max_dynamic_patch": 1}},
    "clip": {"data": {"normalize_type": "clip"}},
    "siglip": {"data": {"normalize_type": "siglip", "pad2square": True, "dynamic_image_size": False}},
    "frames": {"data": {"min_num_frame": 2, "max_num_frame": 7}},
    "drop_path": {"model": {"drop_path_rate": 0.25}},
    "all": {
        "v2pe": STRIDE,
        "data": {"template": "Hermes-2", "use_thumbnail": False, "max_dynamic_patch": 5, "dynamic_max_patch": True},
    },
}


@pytest.fixture(scope="module")
def start(golden, tmp_path_factory):
    """A converted checkpoint that states no positions."""
    folder = tmp_path_factory.mktemp("start")
    hf_to_mcore(write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf"), folder / "megatron")
    return folder / "megatron"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate(((300, 100), (90, 160), (57, 57))):
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(3)]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_and_its_export_are_asked_alike_and_as_trained(start, images, tmp_path, name):
    settings = SETTINGS[name]
    run = make_run(start, tmp_path / "run", **settings)
    mcore_to_hf(run, tmp_path / "hf")
    config = trained_config(run / "iter_0000002")
    assert config == trained_config(tmp_path / "hf") == json.loads((tmp_path / "hf" / "config.json").read_text())
    hf_to_mcore(tmp_path / "hf", tmp_path / "again")
    assert config == trained_config(tmp_path / "again")
    told = {**settings.get("data", {}), **settings.get("v2pe", {})}
    stated = {key: Fraction(config[key]) if key == "rope_pos_id_stride" else config[key] for key in told}
    assert stated == {key: Fraction(value) if key == "rope_pos_id_stride" else value for key, value in told.items()}
    if "model" in settings:
        assert config["vision_config"]["drop_path_rate"] == 0.25

    data, model = DataConfig(meta_path="list.json", **settings.get("data", {})), trained_model(run / "iter_0000002")
    assert model == trained_model(tmp_path / "again") and asked_with(model) == asked_with(
        trained_model(tmp_path / "hf")
    )
    tokenizer = Tokenizer.from_folder(tmp_path / "hf")
    facts = ModelFacts(model.tile_size, model.tokens_per_tile)
    trained = DocumentEncoder(data, tokenizer, facts, StridePolicy("default"), seed=0).tiling()
    for some in (images[:1], images[1:2], images[:2], images):
        turns = [("human", "<image>" * len(some) + "what do you see")]
        policy, tiling = inference_policy(model), checkpoint_tiling(model)
        prompt = encode_prompt(turns, some, model, tokenizer, policy, tiling)
        assert prompt.num_tiles == tuple(picture.num_tiles for picture in plan_images(some, trained))
        assert plan_images(some, trained) == plan_images(some, tiling)
    if name == "stride":
        assert inference_policy(model) == StridePolicy("v2pe_fix", 4) == inference_policy(model, 4)
        assert inference_policy(model, 1, "v2pe_fix") == StridePolicy("v2pe_fix", 1)


def test_all_that_decides_over_a_prompt_is_tried():
    assert set(CARRIED) <= {name for one in SETTINGS.values() for name in one.get("data", {})}


def test_what_the_start_says_and_training_does_not_change_stays_to_the_byte(start, tmp_path):
    config = json.loads((start / "hf" / "config.json").read_text())
    same = {name: config[name] for name in CARRIED if name in config}
    run = make_run(start, tmp_path / "run", data={"min_num_frame": 4, "max_num_frame": 20, **same})
    mcore_to_hf(run, tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").read_bytes() == (start / "hf" / "config.json").read_bytes()


def test_a_run_trained_without_v2pe_on_a_checkpoint_with_it(golden, tmp_path):
    source = write_checkpoint_copy(
        golden / "reference_checkpoint", tmp_path / "source", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=2
    )
    hf_to_mcore(source, tmp_path / "megatron")
    run = make_run(tmp_path / "megatron", tmp_path / "run")
    model = trained_model(run / "iter_0000002")
    assert inference_policy(model) == StridePolicy("default")
    with pytest.raises(ConfigError, match="trained with rope_pos_id_version default"):
        inference_policy(model, 2)


@pytest.mark.parametrize("normalize_type", ["imagenet", "clip", "siglip"])
def test_generation_normalises_as_training_did(normalize_type, start, tmp_path):
    run = make_run(start, tmp_path / "run", data={"normalize_type": normalize_type})
    model = trained_model(run / "iter_0000002")
    seen = []

    class Stand:
        internvl = model

        @staticmethod
        def encode_images(tiles):
            seen.append(tiles)
            return tiles

    engine = object.__new__(Engine)
    engine.model, engine.device, engine.dtype = cast(Any, Stand), torch.device("cpu"), torch.float32
    engine._encode(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    mean = {"imagenet": 0.485, "clip": 0.4814546, "siglip": 0.5}[normalize_type]
    deviation = {"imagenet": 0.229, "clip": 0.2686295, "siglip": 0.5}[normalize_type]
    assert seen[0][0, 0, 0, 0].item() == pytest.approx((1 - mean) / deviation, rel=1e-5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "training_state.json"),
        ("{", "training_state.json"),
        ({"settings": {"note": 1}}, "section 'v2pe' is missing"),
        ({"settings": None}, "'settings' is missing"),
        ({"settings": {"v2pe": {"rope_pos_id_version": "v2pe_fix"}}}, "needs rope_pos_id_stride"),
        ({"settings": {"v2pe": STRIDE, "data": {"use_thumbnail": "yes"}}}, "use_thumbnail: found the text 'yes'"),
        ({"settings": {"v2pe": STRIDE, "data": {"normalize_type": "mine"}}}, "normalize_type: found the text 'mine'"),
        ({"settings": {"v2pe": STRIDE, "model": {"drop_path_rate": 2}}}, "drop_path_rate: found 2"),
    ],
)
def test_a_lost_or_damaged_state_is_never_taken_for_default(start, tmp_path, state, message):
    folder = make_run(start, tmp_path / "run", v2pe=STRIDE) / "iter_0000002"
    if state is None:
        (folder / TRAINING_STATE).unlink()
    elif isinstance(state, str):
        (folder / TRAINING_STATE).write_text(state)
    else:
        write_state(folder, state)
    with pytest.raises(CheckpointError, match=f"training_state.json.*{message}|{message}") as caught:
        trained_config(folder)
    assert str(folder / TRAINING_STATE) in str(caught.value) and "copy the checkpoint again" in str(caught.value)


def test_an_older_config_without_the_fields_is_asked_as_before(golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    for name in ("normalize_type", "dynamic_max_patch"):
        assert name not in config
    model = InternVLConfig.from_hf(config)
    assert (model.normalize_type, model.dynamic_max_patch) == ("imagenet", False)
    tiling = checkpoint_tiling(InternVLConfig.from_hf({**config, "dynamic_max_patch": True}), 6)
    assert not tiling.share_max_num and tiling.max_num == 6  # who names a number means that of each image


def test_an_older_checkpoint_of_the_run_says_its_own(start, tmp_path):
    run = make_run(start, tmp_path / "run", v2pe=STRIDE)
    shutil.copytree(make_run(start, tmp_path / "other", iteration=1) / "iter_0000001", run / "iter_0000001")
    assert trained_model(run / "iter_0000001").v2pe.rope_pos_id_version == "default"
    assert trained_model(run / "iter_0000002").v2pe.rope_pos_id_version == "v2pe_fix"
