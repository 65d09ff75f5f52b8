"""Adapters that cannot be used are refused with what is wrong and what to do; nothing is written.

Beside them unmerged folders of the published code, which are read, and types of adapters that others write.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.native_models import small_config, small_state
from megatron_v2pe.checkpoint.hf.api import hf_to_hf, hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.change import LowRankChange, put_together, rows_taken
from megatron_v2pe.checkpoint.low_rank.merge import export_adapter, merge_adapters
from megatron_v2pe.checkpoint.low_rank.peft_folder import read_peft, write_peft
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.models.config import InternVLConfig

Q = "language_model.model.layers.0.self_attn.q_proj"
WRAP = "base_model.model."


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A small base, and an adapter of its attention with a projector that was trained in full."""
    root = tmp_path_factory.mktemp("bad")
    config = {**small_config("qwen2"), "image_token_id": 7}
    (root / "hf").mkdir()
    save_file(small_state(config), root / "hf" / "model.safetensors", metadata={"format": "pt"})
    (root / "hf" / "config.json").write_text(json.dumps(config))
    model = InternVLConfig.from_hf(config)
    table, generator = mapping_table(model), torch.Generator().manual_seed(0)
    changes = {
        row.name: LowRankChange(
            torch.randn(4, row.shape[1], generator=generator), torch.randn(row.shape[0], 4, generator=generator), 8.0
        )
        for row in table.tensors
        if "self_attn" in row.name and len(row.shape) == 2
    }
    whole = {row.name: torch.randn(row.shape, generator=generator) for row in table.tensors if "mlp1" in row.name}
    write_peft(Adapter("made up", table, changes, whole), model, root / "peft", "original")
    return root, model


@pytest.fixture
def broken(places, tmp_path):
    """A copy of the adapter that a function changes: its settings and its tensors."""
    root, _ = places
    folder = shutil.copytree(root / "peft", tmp_path / "peft")

    def change(settings=None, tensors=None):
        path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        path.write_text(json.dumps(json.loads(path.read_text()) | (settings or {})))
        state = load_file(weights)
        if tensors is not None:
            tensors(state)
        save_file({name: value.contiguous() for name, value in state.items()}, weights)
        return folder

    return change


def refused(places, folder, tmp_path, message, kind=CheckpointError):
    there = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(kind, match=message):
        merge_adapters(places[0] / "hf", [folder], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', only LORA is read: merge it into its model with peft"),
        ({"use_dora": True}, "use_dora asks for DoRA"),
        ({"lora_bias": True}, "a bias in the adapter"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "weights that lie transposed"),
        ({"trainable_token_indices": [1]}, "names trainable_token_indices, and no tensor holds rows of tokens"),
        ({"trainable_token_indices": [1, 1]}, "trainable_token_indices: one row twice of the embedding"),
        ({"trainable_token_indices": {"lm_head": []}}, "trainable_token_indices: no rows of lm_head"),
        ({"init_lora_weights": "pissa_niter_4"}, "under which peft changes the base too"),
        ({"r": 0}, "r: found 0, expected between 1 and"),
        ({"r": 8}, "its factors have rank 4, adapter_config.json says 8"),
        ({"rank_pattern": {"(a+)+": 4}}, "expected names of modules, or simple expressions"),
        ({"rank_pattern": {"[": 4}}, "expected names of modules, or simple expressions"),
        ({"lora_alpha": "much"}, "lora_alpha: found the text 'much', expected a number"),
    ],
)
def test_settings_that_ask_for_something_else(places, broken, tmp_path, settings, message):
    refused(places, broken(settings), tmp_path, message)


def renamed(state, old, new):
    for letter in "AB":
        state[f"{WRAP}{new}.lora_{letter}.weight"] = state.pop(f"{WRAP}{old}.lora_{letter}.weight")


def set_to(name, value):
    return lambda state: state.__setitem__(WRAP + name, value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda state: state.pop(f"{WRAP}{Q}.lora_B.weight"), "lora_A without lora_B, as in 1 of 8 modules"),
        (lambda state: state.pop(f"{WRAP}{Q}.lora_A.weight"), "lora_B without lora_A"),
        (set_to(f"{Q}.lora_B.weight", torch.ones(47, 4)), r"q_proj: lora_B @ lora_A has shape \[47, 48\], the model's"),
        (set_to(f"{Q}.lora_B.weight", torch.ones(48, 3)), r"\[4, 48\] and lora_B \[48, 3\]; their product is none"),
        (set_to(f"{Q}.lora_A.weight", torch.full((4, 48), torch.nan)), "192 of 192 values are NaN or infinite"),
        (set_to(f"{Q}.lora_A.weight", torch.ones(4, 48, dtype=torch.int32)), "is torch.int32, expected a floating"),
        (set_to(f"{Q}.lora_magnitude_vector", torch.ones(48)), "lora_magnitude_vector belongs to another kind"),
        (lambda state: renamed(state, Q, Q.replace("q_proj", "q_prj")), "1 of 11 modules .* did you mean .*q_proj"),
        (lambda state: renamed(state, Q, "model.layers.9.wq"), "are not part of the model"),
        (set_to("mlp1.3.bias", torch.ones(3)), r"mlp1.3.bias has shape \[3\], the model's \[48\]"),
        (lambda state: state.clear(), "holds no adapter: none of its 0 tensors"),
    ],
)
def test_tensors_that_do_not_fit(places, broken, tmp_path, tensors, message):
    refused(places, broken(tensors=tensors), tmp_path, message)


def test_a_rank_above_the_width(places, broken, tmp_path):
    def wide(state):
        state[f"{WRAP}{Q}.lora_A.weight"] = torch.ones(60, 48)
        state[f"{WRAP}{Q}.lora_B.weight"] = torch.ones(48, 60)

    folder = broken({"rank_pattern": {Q: 60}}, wide)
    refused(places, folder, tmp_path, "rank 60 is larger than the linear, which is 48 x 48")


def test_pickles_and_half_folders(places, broken, tmp_path):
    folder = broken()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(places, folder, tmp_path, "refusing pickle: .* with PEFT.s save_pretrained")
    (folder / "adapter_model.bin").unlink()
    refused(places, folder, tmp_path, "adapter_model.safetensors: missing")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_and_an_adapter_of_others(places, broken, tmp_path, dtype, caplog):
    """What peft wrote in a narrow type, without our file beside it: it is taken with a warning."""
    folder = broken(tensors=lambda state: state.update({name: value.to(dtype) for name, value in state.items()}))
    (folder / "v2pe_adapter.json").unlink()
    with caplog.at_level("WARNING"):
        merge_adapters(places[0] / "hf", [folder], tmp_path / "out")
    assert "states no fingerprint of its base" in caplog.text
    base, merged = (load_file(path / "model.safetensors") for path in (places[0] / "hf", tmp_path / "out"))
    change = read_peft(folder, places[1]).changes[f"{Q}.weight"]
    wanted = base[f"{Q}.weight"] + 2 * change.up.float() @ change.down.float()
    assert (merged[f"{Q}.weight"] - wanted).abs().max() < 1e-5  # of values up to 20; measured 1.9e-6
    write_peft(read_peft(folder, places[1]), places[1], tmp_path / "again", "original")
    again, before = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "again", folder))
    assert all(torch.equal(again[name], value) and again[name].dtype == dtype for name, value in before.items())


def test_parts_of_other_scalings_make_the_same_product():
    generator = torch.Generator().manual_seed(1)
    q, v = (
        LowRankChange(torch.randn(r, 6, generator=generator), torch.randn(4, r, generator=generator), alpha)
        for r, alpha in ((2, 3.0), (3, 7.0))
    )
    rows = torch.arange(4)
    joint = put_together([(q, torch.cat([rows, -torch.ones(4).long()])), (v, torch.cat([-torch.ones(4).long(), rows]))])
    assert joint.rank == 5
    assert torch.allclose(joint.product(), torch.cat([q.product(), v.product()]), atol=1e-6)
    back = rows_taken(joint, rows)
    assert back is not None and back.rank == 2 and torch.equal(back.up, q.up) and back.alpha == q.alpha


@pytest.fixture
def unmerged(places, tmp_path):
    """A folder as the published code saves a model that it wraps: base and adapter in one."""
    root, _ = places
    folder = tmp_path / "unmerged"
    folder.mkdir()
    adapter = load_file(root / "peft" / "adapter_model.safetensors")
    state = {}
    for name, value in load_file(root / "hf" / "model.safetensors").items():
        begin = "language_model."
        inside = name.startswith(begin)
        linear = name.removesuffix(".weight")
        wrapped = f"{begin}{WRAP}{linear.removeprefix(begin)}"
        adapted = f"{WRAP}{linear}.lora_A.weight" in adapter
        state[f"{wrapped}.base_layer.weight" if adapted else name.replace(begin, begin + WRAP) if inside else name] = (
            value
        )
        for letter in "AB" if adapted else "":
            state[f"{wrapped}.lora_{letter}.default.weight"] = adapter[f"{WRAP}{linear}.lora_{letter}.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((root / "hf" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_llm_lora": 4}))
    return folder


def test_an_unmerged_folder_of_the_published_code_is_read_merged_or_apart(places, unmerged, tmp_path):
    root, model = places
    hf_to_hf(unmerged, tmp_path / "merged")
    hf_to_mcore(unmerged, tmp_path / "mcore")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    base, merged, back = (
        load_file(path / "model.safetensors") for path in (root / "hf", tmp_path / "merged", tmp_path / "back")
    )
    assert base.keys() == merged.keys() and all(torch.equal(back[name], merged[name]) for name in merged)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["use_llm_lora"] == 0
    export_adapter(unmerged, tmp_path / "apart")
    apart, known = read_peft(tmp_path / "apart", model), read_peft(root / "peft", model)
    assert apart.changes.keys() == known.changes.keys() and apart.dropout == 0.05
    for name, change in known.changes.items():
        assert torch.equal(apart.changes[name].down, change.down) and apart.changes[name].alpha == 8.0
        assert (merged[name] - base[name] - change.product()).abs().max() < 1e-5  # of values up to 20


def test_unmerged_folders_that_cannot_be_read(places, unmerged, tmp_path):
    config = json.loads((unmerged / "config.json").read_text())
    for rank, message in ((0, "config.json states no rank for its part"), (8, "rank 4, config.json says 8")):
        (unmerged / "config.json").write_text(json.dumps({**config, "use_llm_lora": rank}))
        with pytest.raises(CheckpointError, match=message):
            hf_to_mcore(unmerged, tmp_path / "out")
    (unmerged / "config.json").write_text(json.dumps(config))
    shutil.copy(places[0] / "peft" / "adapter_config.json", unmerged)
    with pytest.raises(CheckpointError, match="an adapter beside the weights model.safetensors"):
        hf_to_mcore(unmerged, tmp_path / "out")
    with pytest.raises(ConfigError, match="its weights hold no adapter"):
        export_adapter(places[0] / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
