"""What cannot be converted: the file or tensor and both numbers are named, and nothing is written."""

from __future__ import annotations

import json
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.errors import CheckpointError, V2PEError

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(sources, tmp_path):
    """A copy of the odd checkpoint to damage."""
    folder = tmp_path / "hf"
    shutil.copytree(sources["odd"], folder)
    return folder


def refused(source, target, *words):
    """The conversion fails with all these words in its message and leaves nothing behind."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(V2PEError) as caught:
        hf_to_mcore(source, target)
    for word in words:
        assert word in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


def edit_config(source, **changes):
    config = json.loads((source / "config.json").read_text())
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    (source / "config.json").write_text(json.dumps(config))


def edit_shard(source, change):
    state = load_file(source / SHARD)
    change(state)
    save_file(state, source / SHARD, metadata={"format": "pt"})


def edit_index(source, change):
    index = json.loads((source / INDEX).read_text())
    change(index["weight_map"])
    (source / INDEX).write_text(json.dumps(index))


def test_truncated_file(source, tmp_path):
    size = (source / SHARD).stat().st_size
    with (source / SHARD).open("rb+") as stream:
        stream.truncate(size - 100)
    refused(source, tmp_path / "mcore", SHARD, "truncated", str(size), str(size - 100))


def test_truncated_header(source, tmp_path):
    with (source / SHARD).open("rb+") as stream:
        stream.truncate(50)
    refused(source, tmp_path / "mcore", SHARD, "truncated", "42 of them")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ("not a safetensors file", "0 bytes")),
        (b"\xff" * 100, ("not a safetensors file", "100 bytes")),
        (b"PK\x03\x04" + b"\0" * 100, ("refusing pickle",)),
        (pickle.dumps({"w": 1}, protocol=2), ("refusing pickle",)),
        (b"version https://git-lfs.github.com/spec/v1\n", ("Git LFS pointer",)),
        (struct.pack("<Q", 8) + b"{broken}", ("damaged safetensors header",)),
        (
            struct.pack("<Q", 60) + b'{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}'.ljust(60),
            ("a: dtype", "'Q4'"),
        ),
        (struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'.ljust(60), ("4", "8")),
        (struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'.ljust(60), ("byte 4",)),
    ],
)
def test_a_shard_that_is_no_safetensors_file(source, tmp_path, content, words):
    (source / SHARD).write_bytes(content)
    refused(source, tmp_path / "mcore", SHARD, *words)


def test_a_pickle_where_safetensors_belong(source, tmp_path):
    for path in [*source.glob("*.safetensors"), source / INDEX]:
        path.unlink()
    torch.save({"weight": torch.ones(2)}, source / "pytorch_model.bin")
    refused(source, tmp_path / "mcore", "pytorch_model.bin", "refusing pickle")


def test_no_weights_at_all(source, tmp_path):
    (source / INDEX).unlink()
    refused(source, tmp_path / "mcore", INDEX, "3 shards")
    for path in source.glob("*.safetensors"):
        path.unlink()
    refused(source, tmp_path / "mcore", "holds no weights")
    refused(tmp_path / "nowhere", tmp_path / "mcore", "no such folder")


def test_a_missing_shard(source, tmp_path):
    (source / SHARD).unlink()
    refused(source, tmp_path / "mcore", SHARD, "missing", "the index names it for")


def test_an_index_that_disagrees_with_the_shards(source, tmp_path):
    name = "mlp1.0.weight"
    edit_index(source, lambda index: index.update({"mlp9.weight": SHARD}))
    refused(source, tmp_path / "mcore", INDEX, "mlp9.weight", "no shard holds it")
    edit_index(source, lambda index: (index.pop("mlp9.weight"), index.pop(name)))
    refused(source, tmp_path / "mcore", INDEX, name, "not listed")
    edit_index(source, lambda index: index.update({name: "../model.safetensors"}))
    refused(source, tmp_path / "mcore", INDEX, "refused", "../model.safetensors")
    (source / INDEX).write_text("{")
    refused(source, tmp_path / "mcore", INDEX, "not valid JSON")


def test_missing_and_left_over_tensors(source, tmp_path):
    edit_shard(source, lambda state: state.update({"mlp1.2.weight": state.pop("mlp1.1.weight")}))
    edit_index(source, lambda index: index.update({"mlp1.2.weight": index.pop("mlp1.1.weight")}))
    words = ("1 tensors are missing: mlp1.1.weight", "1 tensors are not part of this architecture: mlp1.2.weight")
    refused(source, tmp_path / "mcore", *words)


def test_differences_of_one_usual_cause_come_with_what_to_do(source, tmp_path):
    name = "language_model.model.layers.0.attention.rotary_emb.inv_freq"
    edit_shard(source, lambda state: state.update({name: torch.ones(8)}))
    edit_index(source, lambda index: index.update({name: SHARD}))
    refused(source, tmp_path / "mcore", name, "rotary frequencies", "remove them")
    edit_shard(source, lambda state: state.pop(name))
    edit_index(source, lambda index: index.pop(name))
    head, index = "language_model.output.weight", json.loads((source / INDEX).read_text())
    file = source / index["weight_map"][head]
    save_file({key: tensor for key, tensor in load_file(file).items() if key != head}, file)
    edit_index(source, lambda index: index.pop(head))
    refused(source, tmp_path / "mcore", head, "state tie_word_embeddings true in llm_config")


def test_wrong_shape(source, tmp_path):
    edit_shard(source, lambda state: state.update({"mlp1.1.bias": torch.zeros(63, dtype=torch.bfloat16)}))
    refused(source, tmp_path / "mcore", "mlp1.1.bias", "[63]", "[64]")


def test_another_vocabulary_or_depth_than_the_config_says(source, tmp_path):
    edit_config(source, llm_config__vocab_size=511)
    refused(source, tmp_path / "mcore", "[509, 64]", "[511, 64]")
    edit_config(source, llm_config__vocab_size=509, llm_config__num_hidden_layers=5)
    refused(source, tmp_path / "mcore", "7 tensors are missing", "layers.4.attention.wqkv.weight")


def test_a_tower_of_the_other_kind(source, tmp_path):
    """A config of InternViT-6B beside the weights of a 300M: each tensor that only one side has is named."""
    edit_config(source, vision_config__qk_normalization=True)
    refused(source, tmp_path / "mcore", "6 tensors are missing", "vision_model.encoder.layers.0.attn.k_norm.weight")
    edit_config(source, vision_config__qk_normalization=False, vision_config__norm_type="rms_norm")
    refused(source, tmp_path / "mcore", "6 tensors", "vision_model.encoder.layers.0.norm1.bias")


def test_types_that_do_not_fit(source, tmp_path):
    edit_shard(source, lambda state: state.update({"mlp1.1.bias": torch.zeros(64, dtype=torch.int64)}))
    refused(source, tmp_path / "mcore", "mlp1.1.bias", "int64", "floating-point")
    edit_shard(source, lambda state: state.update({"mlp1.1.bias": torch.zeros(64, dtype=torch.bfloat16)}))
    name = next(name for name in load_file(source / SHARD) if name.endswith("feed_forward.w1.weight"))
    edit_shard(source, lambda state: state.update({name: state[name].float()}))
    refused(source, tmp_path / "mcore", name, "float32", "bfloat16", "become one tensor")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"llm_config__architectures": ["FalconForCausalLM"]}, ("FalconForCausalLM", "InternLM2ForCausalLM")),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, ("Llava", "InternVLChatModel")),
        ({"llm_config__rope_scaling": {"type": "ntk", "factor": 2.0}}, ("ntk", "yarn")),
        ({"rope_pos_id_version": "v3pe"}, ("'v3pe'",)),
    ],
)
def test_another_architecture(source, tmp_path, changes, words):
    edit_config(source, **changes)
    refused(source, tmp_path / "mcore", "config.json", *words)


def test_no_config_or_a_name_that_is_taken(source, tmp_path):
    (source / "layout.json").write_text("{}")
    refused(source, tmp_path / "mcore", "layout.json", "taken")
    (source / "layout.json").unlink()
    (source / "config.json").write_text("{,}")
    refused(source, tmp_path / "mcore", "config.json", "not valid JSON")
    (source / "config.json").unlink()
    refused(source, tmp_path / "mcore", "config.json", "no such file")


def test_nothing_is_left_of_a_conversion_that_breaks_off(source, tmp_path, monkeypatch):
    from megatron_v2pe.checkpoint.hf import to_mcore as module

    def no_space(*arguments):
        raise OSError(28, "No space left on device")

    hf_to_mcore(source, tmp_path / "mcore")
    before = (tmp_path / "mcore" / ".metadata").read_bytes()
    monkeypatch.setattr(module, "write_description", no_space)
    with pytest.raises(OSError):
        hf_to_mcore(source, tmp_path / "mcore", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "mcore"]
    assert (tmp_path / "mcore" / ".metadata").read_bytes() == before


def test_an_hf_folder_is_no_megatron_checkpoint_and_the_reverse(sources, converted, tmp_path):
    with pytest.raises(CheckpointError, match="an HF checkpoint already"):
        mcore_to_hf(sources["odd"], tmp_path / "hf")
    refused(converted["odd"], tmp_path / "mcore", "a Megatron checkpoint already")
