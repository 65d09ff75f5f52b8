"""Which layer spec is chosen where, and that both specs write the same checkpoint."""

from __future__ import annotations

import pytest
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer

from helpers import oracles
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.families.internvit.tower import InternViTLayer
from megatron_v2pe.models import layer_specs
from megatron_v2pe.models.layer_specs import FUSED_NORM_NAMES, block_spec, choose_spec, layer_spec
from megatron_v2pe.models.norms import HeadNorm, Norm

FUSED = ("self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_")
"""Where Transformer Engine's linears hold the norm they were fused with."""
LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


@pytest.mark.parametrize(
    ("name", "on_cuda", "installed", "expected"),
    [
        ("auto", True, True, "te"),
        ("auto", True, False, "local"),
        ("auto", False, True, "local"),
        ("auto", False, False, "local"),
        ("local", True, True, "local"),
        ("local", True, False, "local"),
        ("local", False, True, "local"),
        ("local", False, False, "local"),
        ("te", True, True, "te"),
    ],
)
def test_choice(name, on_cuda, installed, expected, monkeypatch):
    monkeypatch.setattr(layer_specs, "transformer_engine_installed", lambda: installed)
    assert choose_spec(name, on_cuda) == expected


@pytest.mark.parametrize(
    ("on_cuda", "installed", "message"),
    [
        (True, False, "Transformer Engine is not installed; use local"),
        (False, True, "Transformer Engine needs CUDA; use local"),
        (False, False, "Transformer Engine needs CUDA; use local"),
    ],
)
def test_transformer_engine_asked_for_where_it_cannot_run(on_cuda, installed, message, monkeypatch):
    monkeypatch.setattr(layer_specs, "transformer_engine_installed", lambda: installed)
    with pytest.raises(ConfigError, match=message):
        choose_spec("te", on_cuda)


@pytest.mark.parametrize("on_cuda", [True, False])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", ["", "TE", "megatron"])
def test_unknown_name(name, installed, on_cuda, monkeypatch):
    monkeypatch.setattr(layer_specs, "transformer_engine_installed", lambda: installed)
    with pytest.raises(ConfigError, match=f"layer spec '{name}' is none of auto, local, te"):
        choose_spec(name, on_cuda)


@pytest.mark.parametrize("found", [None, object()])
def test_transformer_engine_is_looked_for_without_importing_it(found, monkeypatch):
    asked = []
    monkeypatch.setattr(layer_specs, "find_spec", lambda name: asked.append(name) or found)
    assert layer_specs.transformer_engine_installed() is (found is not None)
    assert asked == ["transformer_engine"]


@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
@pytest.mark.parametrize("layer", [TransformerLayer, InternViTLayer])
def test_the_local_layer_has_the_mask_and_class_asked_for(layer, mask):
    spec = layer_spec("local", mask, layer)
    assert spec.module is layer
    assert spec.submodules.self_attention.params == {"attn_mask_type": mask}
    assert spec.submodules.sharded_state_dict_keys_map == FUSED_NORM_NAMES


def test_only_a_stack_with_a_final_norm_gets_one():
    assert block_spec([], final_norm=True).layer_norm is Norm
    assert block_spec([], final_norm=False).layer_norm is None


def test_the_names_of_fused_norms():
    assert tuple(FUSED_NORM_NAMES.values()) == FUSED


def test_checkpoint_keys_of_the_local_spec_are_those_of_fused_linears(pools, golden):
    keys = pools[1].run(oracles.checkpoint_keys, checkpoint=str(golden / "reference_checkpoint"))[0]
    decoder = _of_layers("language_model.decoder.layers", 4, ("weight",), ())
    tower = _of_layers("vision_model.decoder.layers", 3, ("weight", "bias"), ("ls1", "ls2"))
    in_layers = {key for key in keys if ".layers." in key}
    assert in_layers == decoder | tower
    assert not [key for key in keys if "input_layernorm" in key or "pre_mlp_layernorm" in key]


def _of_layers(prefix, count, kinds, own):
    """What layers of fused linears hold, by checkpoint key."""
    names = {f"{linear}.{kind}" for linear in LINEARS for kind in kinds}
    names |= {norm + kind for norm in FUSED for kind in kinds} | set(own)
    return {f"{prefix}.{layer}.{name}" for layer in range(count) for name in names}


def norms_of_attention(spec):
    attention = spec.submodules.self_attention.submodules
    return attention.q_layernorm, attention.k_layernorm


def test_queries_and_keys_have_the_norms_that_are_asked_for():
    assert norms_of_attention(layer_spec("local", AttnMaskType.no_mask, InternViTLayer)) == (IdentityOp, IdentityOp)
    asked = layer_spec("local", AttnMaskType.no_mask, InternViTLayer, query_norm=Norm, key_norm=Norm)
    assert norms_of_attention(asked) == (Norm, Norm)


def test_a_decoder_layer_refuses_norms_that_it_would_pass_over():
    for norms in ({"query_norm": Norm}, {"query_norm": Norm, "key_norm": Norm}, {"key_norm": HeadNorm}):
        with pytest.raises(ConfigError, match="norms of queries and keys"):
            layer_spec("local", AttnMaskType.causal, **norms)
    spec = layer_spec("local", AttnMaskType.causal, query_norm=HeadNorm, key_norm=HeadNorm)
    assert norms_of_attention(spec) == (HeadNorm, HeadNorm)
