"""The table covers InternVL2-2B name by name, every mapping can be undone, and it agrees with the tests' own names."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from helpers.golden import read_checkpoint
from helpers.hf_names import to_full_state
from megatron_v2pe.checkpoint.hf.mappings import QueryGroups, mapped
from megatron_v2pe.checkpoint.hf.safetensors_io import Header, SafetensorsFile, build_header
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.workshop.synthetic.checkpoint import INTERNVL2_2B_PARAMETERS, internvl2_2b_config

PUBLISHED = {
    "vision_model.embeddings.class_embedding": (1, 1, 1024),
    "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "vision_model.embeddings.patch_embedding.bias": (1024,),
    "vision_model.embeddings.position_embedding": (1, 1025, 1024),
    "mlp1.0.weight": (4096,),
    "mlp1.0.bias": (4096,),
    "mlp1.1.weight": (2048, 4096),
    "mlp1.1.bias": (2048,),
    "mlp1.3.weight": (2048, 2048),
    "mlp1.3.bias": (2048,),
    "language_model.model.tok_embeddings.weight": (92553, 2048),
    "language_model.model.norm.weight": (2048,),
    "language_model.output.weight": (92553, 2048),
}
VISION_LAYER = {
    "attn.qkv.weight": (3072, 1024),
    "attn.qkv.bias": (3072,),
    "attn.proj.weight": (1024, 1024),
    "attn.proj.bias": (1024,),
    "mlp.fc1.weight": (4096, 1024),
    "mlp.fc1.bias": (4096,),
    "mlp.fc2.weight": (1024, 4096),
    "mlp.fc2.bias": (1024,),
    "norm1.weight": (1024,),
    "norm1.bias": (1024,),
    "norm2.weight": (1024,),
    "norm2.bias": (1024,),
    "ls1": (1024,),
    "ls2": (1024,),
}
LANGUAGE_LAYER = {
    "attention.wqkv.weight": (4096, 2048),
    "attention.wo.weight": (2048, 2048),
    "feed_forward.w1.weight": (8192, 2048),
    "feed_forward.w3.weight": (8192, 2048),
    "feed_forward.w2.weight": (2048, 8192),
    "attention_norm.weight": (2048,),
    "ffn_norm.weight": (2048,),
}


def published():
    names = dict(PUBLISHED)
    for layer in range(24):
        names |= {f"vision_model.encoder.layers.{layer}.{name}": shape for name, shape in VISION_LAYER.items()}
        names |= {f"language_model.model.layers.{layer}.{name}": shape for name, shape in LANGUAGE_LAYER.items()}
    return names


@pytest.fixture(scope="module")
def full_size():
    return mapping_table(InternVLConfig.from_hf(internvl2_2b_config()))


def test_every_published_name_and_shape_is_covered(full_size):
    assert {mapping.name: mapping.shape for mapping in full_size.tensors} == published()
    assert sum(math.prod(mapping.shape) for mapping in full_size.tensors) == INTERNVL2_2B_PARAMETERS == 2_205_754_368


def test_every_megatron_tensor_is_filled_exactly_once(full_size):
    filled: dict[str, list[tuple[int, int]]] = {}
    for mapping in full_size.tensors:
        for run in mapping.rows.runs(mapping.shape[0]):
            filled.setdefault(mapping.key, []).append((run.key_row, run.key_row + run.rows))
    rows = {mapping.key: mapping.key_rows for mapping in full_size.tensors}
    for key, parts in filled.items():
        borders = [0, *(end for _, end in sorted(parts))]
        assert [begin for begin, _ in sorted(parts)] == borders[:-1] and borders[-1] == rows[key], key


def test_the_table_agrees_with_the_names_of_the_tests(golden):
    config, state = read_checkpoint(golden / "reference_checkpoint")
    model = InternVLConfig.from_hf(config)
    expected = to_full_state(state, model.vision.num_attention_heads)
    ours: dict[str, torch.Tensor] = {}
    for mapping in mapping_table(model).tensors:
        whole = ours.setdefault(mapping.key, torch.empty(mapping.key_shape))
        for first_row, rows in mapping.to_mcore(state[mapping.name]):
            whole[first_row : first_row + len(rows)] = rows
        back = mapping.to_hf(lambda first_row, rows, whole=whole: whole[first_row : first_row + rows])
        assert torch.equal(back, state[mapping.name]), mapping.name
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, ours[key]), key


def test_heads_are_interleaved_and_back():
    rows = torch.arange(3 * 2 * 2)  # q0 q0 q1 q1 k0 k0 k1 k1 v0 v0 v1 v1
    mapping = mapped("qkv", "linear_qkv", 12, rows=QueryGroups(heads=2, groups=2).part_by_part)
    ((first_row, joint),) = mapping.to_mcore(rows)
    assert first_row == 0 and joint.tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    assert torch.equal(mapping.to_hf(lambda first_row, rows: joint[first_row : first_row + rows]), rows)


def test_an_unknown_language_model_is_refused():
    model = InternVLConfig.from_hf(internvl2_2b_config())
    other = replace(model, llm=replace(model.llm, architecture="MambaForCausalLM"))
    with pytest.raises(ConfigError, match="'MambaForCausalLM' cannot be converted; known: InternLM2ForCausalLM"):
        mapping_table(other)


def test_a_mapped_tensor_holds_nothing_else(golden):
    """A tensor that brought the whole file along would be written with it."""
    file = SafetensorsFile(golden / "reference_checkpoint" / "model-00001-of-00004.safetensors")
    for place in file.header.tensors:
        tensor = file.tensor(place.name)
        assert tensor.untyped_storage().nbytes() == place.nbytes == tensor.nbytes


def test_headers(golden):
    file = SafetensorsFile(golden / "reference_checkpoint" / "model-00002-of-00004.safetensors")
    assert file.header.file_size == file.path.stat().st_size
    half = file.header.with_dtype(torch.bfloat16)
    assert [place.name for place in half.tensors] == [place.name for place in file.header.tensors]
    assert half.tensors[-1].end * 2 == file.header.tensors[-1].end
    assert half.data_start % 8 == 0 and json.loads(half.text)["__metadata__"] == {"format": "pt"}
    built = build_header([("a", (2, 3)), ("b", ())], torch.float32)
    assert Header.parse(built.text, "x") == built and built.tensors[1].end == 28
