"""Which linears, pieces and ranks the section `adapter` asks for of each family, and what is refused before a start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_v2pe.checkpoint.adapters import AdapterPointer, check_resumed, fingerprint_of
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.native_config import NATIVE, ORIGINAL
from megatron_v2pe.models.presets import preset_config
from megatron_v2pe.train.adapter_plan import learning_of, plan_of
from megatron_v2pe.train.adapter_settings import AdapterSettings
from megatron_v2pe.train.config import ExperimentConfig, ModelConfig
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy

LORA = AdapterSettings(kind="lora", rank=8)


def model_of(preset):
    return InternVLConfig.from_hf(preset_config(preset), preset)


def pieces(plan, linear, layer=0):
    found = plan.pieces[f"language_model.decoder.layers.{layer}.{linear}"]
    return tuple(piece.name for piece in found)


@pytest.mark.parametrize(
    ("preset", "layout", "division", "qkv", "fc1"),
    [
        ("InternVL2-2B", ORIGINAL, "auto", ("whole",), ("gate", "up")),  # wqkv
        ("InternVL2-2B", NATIVE, "auto", ("q", "k", "v"), ("gate", "up")),
        ("InternVL2-2B", ORIGINAL, "split", ("q", "k", "v"), ("gate", "up")),
        ("InternVL2-4B", ORIGINAL, "auto", ("whole",), ("whole",)),  # Phi-3's qkv_proj and gate_up_proj
        ("InternVL2-4B", ORIGINAL, "split", ("q", "k", "v"), ("gate", "up")),
        ("InternVL3-8B", ORIGINAL, "auto", ("q", "k", "v"), ("gate", "up")),
        ("InternVL3-8B", ORIGINAL, "fused", ("whole",), ("whole",)),
    ],
)
def test_pieces_follow_the_layout_unless_a_setting_says_otherwise(preset, layout, division, qkv, fc1):
    plan = plan_of(replace(LORA, pieces=division), model_of(preset), layout, seed=1)
    assert pieces(plan, "self_attention.linear_qkv") == qkv
    assert pieces(plan, "mlp.linear_fc1") == fc1
    assert len(plan.pieces) == 4 * model_of(preset).llm.num_layers and plan.parts == ("language_model",)


def test_targets_may_be_pieces_and_parts_have_ranks_of_their_own():
    settings = replace(LORA, targets=("language_model.q", "v", "vision_projection.mlp"), projector_rank=4)
    plan = plan_of(settings, model_of("InternVL3-8B"), ORIGINAL, seed=1)
    assert pieces(plan, "self_attention.linear_qkv") == ("q", "v")
    assert {name.split(".")[-1] for name in plan.pieces} == {"linear_qkv", "linear_fc1", "linear_fc2"}
    assert (plan.settings["language_model"].scaling, plan.settings["vision_projection"].rank) == (2.0, 4)
    learning = learning_of(ModelConfig(freeze_backbone=True), plan)
    assert (learning.backbone, learning.llm, learning.projector) == (False, False, False)
    assert learning_of(ModelConfig(), plan_of(LORA, model_of("InternVL3-8B"), ORIGINAL, 1)).projector


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("atention",)}, "adapter.targets: 'atention' is unknown; did you mean attention"),
        ({"targets": ("q_proj",)}, "'q_proj' is unknown; what Hugging Face calls so is q here"),
        ({"targets": ("language_model.down_proj",)}, "what Hugging Face calls so is linear_fc2 here"),
        ({"targets": ("q",)}, "'q' matches no linear of this model.*adapter.pieces split"),
        ({"targets": ("vision_projection.attention",)}, "matches no linear of this model"),
        ({"targets": ("language_model.q",), "pieces": "split", "backbone_rank": 4}, "adapter.backbone_rank is 4, but"),
        ({"targets": ("vision_projection.mlp",), "projector_rank": 3000}, "adapter.projector_rank 3000 is larger than"),
        (
            {"rank": 2049},
            r"adapter.rank 2049 is larger than language_\S+ which is 4096 x 2048: choose at most 2048",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(replace(LORA, **changes), model_of("InternVL2-2B"), ORIGINAL, seed=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adapter": {"targets": ["mlp", "mlp"]}}, "adapter.targets: mlp stands there twice"),
        ({"model": {"spec": "te"}}, "adapter.kind lora works on layers of model.spec local"),
        ({"adapter": {"dropout": 1.5}}, "adapter.dropout"),
    ],
)
def test_settings_that_exclude_each_other(values, message):
    config = ExperimentConfig().updated({"model": {"model_name_or_path": "m"}, "adapter": {"kind": "lora"}}, "test")
    config.updated({"data": {"meta_path": "d"}, "model": {name: True for name in FROZEN}}, "test").validate()
    with pytest.raises(ConfigError, match=message):
        config.updated({"data": {"meta_path": "d"}}, "test").updated(values, "test").validate()


def test_settings_of_adapters_without_their_kind_are_refused_and_do_not_train_everything():
    for changed in ({"llm_rank": 8}, {"targets": ("mlp",)}, {"start": "peft"}):
        with pytest.raises(ConfigError, match=f"adapter.{next(iter(changed))} .* set adapter.kind lora"):
            AdapterSettings(**changed).validate()
    AdapterSettings().validate()
    config = ExperimentConfig().updated({"model": {"model_name_or_path": "m"}, "data": {"meta_path": "d"}}, "test")
    with pytest.raises(ConfigError, match="optimizer.adapter_lr is 0.1, but nothing of adapters learns"):
        config.updated({"optimizer": {"adapter_lr": 0.1}}, "test").validate()


FROZEN = ("freeze_llm", "freeze_backbone", "freeze_mlp")


def test_a_checkpoint_with_adapters_knows_its_base(golden, tmp_path):
    source = write_checkpoint_copy(golden / "reference_checkpoint", tmp_path / "hf")
    for name in ("base", "again"):
        hf_to_mcore(source, tmp_path / name)
    (tmp_path / "again" / "manifest.json").rename(tmp_path / "manifest.json")
    model = InternVLConfig.from_hf(json.loads((source / "config.json").read_text()))
    plan = plan_of(LORA, model, ORIGINAL, seed=3)
    assert plan is not None
    pointer = AdapterPointer.of(plan, "auto", "hf", tmp_path / "base")
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    assert AdapterPointer.read(folder) is None
    with pytest.raises(ConfigError, match="was trained without adapters, and this run has some"):
        check_resumed(folder, tmp_path / "base", plan)
    (folder / "adapter.json").write_text(pointer.text())
    assert AdapterPointer.read(folder) == pointer
    assert pointer.plan().pieces == plan.pieces and pointer.plan().parts == plan.parts
    check_resumed(folder, tmp_path / "base", plan)
    with pytest.raises(ConfigError, match="holds adapters, and this run has none"):
        check_resumed(folder, tmp_path / "base", None)
    with pytest.raises(ConfigError, match="another rank: of language_model 8, in this run 4"):
        check_resumed(folder, tmp_path / "base", plan_of(replace(LORA, rank=4), model, ORIGINAL, 3))
    with pytest.raises(ConfigError, match="another linears"):
        check_resumed(folder, tmp_path / "base", plan_of(replace(LORA, targets=("mlp",)), model, ORIGINAL, 3))
    other = fingerprint_of(tmp_path / "again")  # by its shards, for it has no manifest any more
    assert other != pointer.fingerprint
    with pytest.raises(
        CheckpointError, match=rf"fingerprint {pointer.fingerprint}; .*again has the fingerprint {other}"
    ):
        check_resumed(folder, tmp_path / "again", plan)
    (tmp_path / "manifest.json").rename(tmp_path / "again" / "manifest.json")
    check_resumed(folder, Path(tmp_path / "again"), plan)
    (folder / "adapter.json").write_text(pointer.text().replace('"rank": 8', '"rank": -8'))
    with pytest.raises(CheckpointError, match="rank"):
        AdapterPointer.read(folder)


@pytest.mark.parametrize(
    "piece", [{"of": 0}, {"size": 0}, {"begin": 1}, {"size": 3, "of": 2}, {"block": 0}], ids=lambda piece: str(piece)
)
def test_a_pointer_whose_pieces_are_no_rows_is_refused(tmp_path, piece):
    content = {"base": "b", "base_folder": "b", "fingerprint": "f", "division": "auto", "seed": 1}
    content |= {"parts": {"language_model": {"rank": 2, "alpha": 4.0}}}
    linear = "language_model.decoder.layers.0.mlp.linear_fc1"
    path = tmp_path / "adapter.json"
    path.write_text(json.dumps({**content, "pieces": {linear: [{"name": "whole"}]}}))
    assert AdapterPointer.read(tmp_path) is not None
    path.write_text(json.dumps({**content, "pieces": {linear: [{"name": "whole", **piece}]}}))
    with pytest.raises(CheckpointError, match=r"pieces: .*linear_fc1: whole: .* are no rows of a linear"):
        AdapterPointer.read(tmp_path)
    path.write_text(json.dumps({**content, "pieces": {"vision_model.x": [{"name": "whole"}]}}))
    with pytest.raises(CheckpointError, match=r"vision_model has no rank in parts, \['language_model'\]"):
        AdapterPointer.read(tmp_path)


@pytest.mark.parametrize("changes", [{"backbone_rank": 4}, {"targets": ("attention",)}, {"targets": ("linear_qkv",)}])
def test_layers_of_a_tower_do_not_learn_in_full_beside_their_adapters(changes):
    settings, model = replace(LORA, **changes), model_of("InternVL2-2B")
    assert "vision_model" in plan_of(settings, model, ORIGINAL, 1).parts
    with pytest.raises(ConfigError, match="unfreeze_vit_layers -1 would train weights of the tower that adapters"):
        plan_of(settings, model, ORIGINAL, 1, unfreeze_vit_layers=-1)
    others = replace(LORA, targets=("language_model.mlp", "vision_projection.mlp"))
    assert plan_of(others, model, ORIGINAL, 1, unfreeze_vit_layers=-1) is not None
