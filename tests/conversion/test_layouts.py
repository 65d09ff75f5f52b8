"""A converted folder loads in any layout, and what any layout trained converts back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from helpers import parity, short_runs
from helpers.conversion import load_whole, swap_queries_and_keys
from helpers.golden import read_checkpoint
from helpers.hf_names import to_full_state
from helpers.packs import random_packs
from helpers.sealing import seal
from megatron_v2pe.checkpoint.hf.api import mcore_to_hf, mcore_to_mcore
from megatron_v2pe.checkpoint.hf.compare import compare, open_any
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy

LAYOUTS = {
    "dp2": (2, ParallelConfig()),
    "tp2": (2, ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)),
    "pp2": (2, ParallelConfig(pipeline_model_parallel_size=2)),
    "tp2_pp2": (
        4,
        ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True, pipeline_model_parallel_size=2),
    ),
}


def expected_of(source):
    config, state = read_checkpoint(source)
    return config, to_full_state(state, InternVLConfig.from_hf(config).vision.num_attention_heads)


@pytest.mark.parametrize("name", ["dp2", "tp2", "pp2", "tp2_pp2"])
def test_a_converted_folder_loads_in_any_layout(pools, sources, converted, name):
    config, expected = expected_of(sources["odd"])
    world, layout = LAYOUTS[name]
    folder = str(converted["odd"])
    loaded = pools[world].run(load_whole, folder=folder, hf_config=config, layout=layout, dtype=torch.bfloat16)[0]
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        assert torch.equal(tensor, expected[key]), key  # the vocabulary too, of which 512 rows are in memory


def test_a_swapped_permutation_is_seen_by_the_model(sources, pools, tmp_path, monkeypatch):
    """Planted break: q and k of the tower change places on the way there."""
    from megatron_v2pe.checkpoint.hf.api import hf_to_mcore

    swap_queries_and_keys(monkeypatch)
    hf_to_mcore(sources["odd"], tmp_path / "mcore")
    config, expected = expected_of(sources["odd"])
    places = {"folder": str(tmp_path / "mcore"), "hf_config": config}
    loaded = pools[2].run(load_whole, **places, layout=ParallelConfig(), dtype=torch.bfloat16)[0]
    wrong = {key for key, tensor in loaded.items() if not torch.equal(tensor[: expected[key].shape[0]], expected[key])}
    assert wrong == {key for key in expected if key.startswith("vision_model.decoder") and "linear_qkv." in key} - {
        key for key in expected if "layer_norm" in key
    }


@pytest.fixture(scope="module")
def case(sources):
    """One training step on the odd checkpoint, in fp32."""
    config, weights = expected_of(sources["odd"])
    policy = StridePolicy("v2pe_fix", 64)
    return parity.Case(
        hf_config=config,
        layout=ParallelConfig(),
        packs=random_packs(config, policy, "mixed"),
        weights={key: tensor.float() for key, tensor in weights.items()},
        image_token_id=505,
        policy=policy,
    )


@pytest.fixture(scope="module")
def trained(pools, case, converted, tmp_path_factory):
    """Folder of a short run and its final weights, by layout."""

    def run(name, dtype):
        root = tmp_path_factory.mktemp(f"run_{name}")
        shutil.copytree(converted["odd"] / "hf", root / "hf")
        world, layout = LAYOUTS[name]
        this = replace(case, layout=layout, dtype=dtype)
        return root, pools[world].run(short_runs.train, case=this, steps=1, save_to=str(root))[0]

    return run


@pytest.mark.parametrize("name, dtype", [("tp2", torch.float32), ("pp2", torch.bfloat16)])
def test_a_training_checkpoint_converts_back(trained, sources, tmp_path, name, dtype):
    root, history = trained(name, dtype)
    mcore_to_hf(root, tmp_path / "hf", dtype="fp32")
    config, state = read_checkpoint(tmp_path / "hf")
    exported = to_full_state(state, InternVLConfig.from_hf(config).vision.num_attention_heads)
    assert exported.keys() == history.weights.keys()
    _, before = expected_of(sources["odd"])
    for key, tensor in exported.items():
        assert torch.equal(tensor, history.weights[key][: tensor.shape[0]].float()), key
    assert not torch.equal(
        exported["vision_projection.linear_fc1.weight"], before["vision_projection.linear_fc1.weight"]
    )
    assert state["language_model.output.weight"].shape[0] == 509
    mcore_to_mcore(root, tmp_path / "light")  # the weights alone, whole and without padding
    found = compare(open_any(root), open_any(tmp_path / "light"))
    assert found.same and found.equal == len(state)
    _check_settings_are_carried_over(root, sources, tmp_path)


def _check_settings_are_carried_over(root, sources, tmp_path):
    """The run's V2PE settings go into config.json; a run that states none leaves it as it was."""
    original = (sources["odd"] / "config.json").read_bytes()
    mcore_to_hf(root / "iter_0000001", tmp_path / "silent")
    assert (tmp_path / "silent" / "config.json").read_bytes() == original
    state_file = root / "iter_0000001" / "training_state.json"
    state = json.loads(state_file.read_text())
    written = {}
    for label, settings, flags in (
        ("fixed", {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "64"}, {}),
        ("random", {"rope_pos_id_version": "v2pe_rnd", "rope_pos_id_stride": None}, {}),
        ("off", {"rope_pos_id_version": "default", "rope_pos_id_stride": None}, {}),
        ("flag", {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "64"}, {"rope_pos_id_stride": "1/2"}),
    ):
        state["settings"] = {"v2pe": settings}
        state_file.write_text(json.dumps(state))
        seal(state_file.parent)
        mcore_to_hf(root, tmp_path / label, **flags)
        config = json.loads((tmp_path / label / "config.json").read_text())
        inner = config["llm_config"].get("rope_pos_id_version")
        written[label] = (config.get("rope_pos_id_version"), inner, config.get("rope_pos_id_stride"))
    assert written == {
        "fixed": ("v2pe_fix", "v2pe_fix", 64),
        "random": ("v2pe_rnd", "v2pe_rnd", None),
        "off": (None, None, None),
        "flag": ("v2pe_fix", "v2pe_fix", 0.5),
    }
    data = {"template": "Hermes-2", "use_thumbnail": False, "max_dynamic_patch": 2, "min_dynamic_patch": 1}
    state["settings"]["data"] = {**data, "dynamic_image_size": False, "num_workers": 3}
    state_file.write_text(json.dumps(state))
    seal(state_file.parent)
    mcore_to_hf(root, tmp_path / "other_data")
    config = json.loads((tmp_path / "other_data" / "config.json").read_text())
    assert {name: config[name] for name in (*data, "dynamic_image_size")} == {**data, "dynamic_image_size": False}
    assert "num_workers" not in config and config["pad2square"] is False
    _check_a_damaged_state_is_refused(root, state, state_file, tmp_path)


def _check_a_damaged_state_is_refused(root, state, state_file, tmp_path):
    """An export never forgets how it was trained, unless it is told."""
    for change, message in (
        ({"settings": {"note": 1}}, "section 'v2pe' is missing"),
        ({"settings": None}, "'settings' is missing"),
        ({"settings": {"v2pe": {"rope_pos_id_version": "v2pe_fix"}}}, "needs rope_pos_id_stride"),
        ({"settings": {"v2pe": {"rope_pos_id_version": 5}}}, "rope_pos_id_version: found 5"),
        ({"settings": {**state["settings"], "data": {"use_thumbnail": "yes"}}}, "use_thumbnail: found the text 'yes'"),
    ):
        state_file.write_text(json.dumps({**state, **change}))
        seal(state_file.parent)
        with pytest.raises(CheckpointError, match=f"training_state.json: .*{message}.*state them"):
            mcore_to_hf(root, tmp_path / "forgotten")
        assert not (tmp_path / "forgotten").exists()
    mcore_to_hf(root, tmp_path / "told", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=8)
    assert json.loads((tmp_path / "told" / "config.json").read_text())["rope_pos_id_stride"] == 8
