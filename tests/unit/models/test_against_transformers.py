"""Decoder and tower against independent implementations: Llama, Mistral and InternVLVisionModel of `transformers`.

Llama and Mistral compute what InternLM2 computes (RMSNorm, SwiGLU, grouped heads, half-split rotary embedding); only
names and the packing of q, k and v differ. Their models are built small, with weights in which every tensor matters.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from helpers import oracles, towers
from helpers.golden import read_checkpoint
from helpers.hf_names import to_full_state
from megatron_v2pe.parallel.config import ParallelConfig

LOGITS = 1e-4  # absolute; measured 6.9e-6 on logits up to 4.3
HIDDEN = 5e-5  # absolute; measured 2.2e-6 on values up to 11
GRADIENT = 2e-5  # relative to the largest entry of each tensor; measured 1.2e-6
DECODER_LAYER = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


@pytest.fixture(scope="module")
def config(golden):
    return read_checkpoint(golden / "reference_checkpoint")[0]


@pytest.fixture
def checkpoint(golden):
    return str(golden / "reference_checkpoint")


def language_model(config, kind):
    """A causal model of `transformers` with the sizes of the checkpoint's decoder."""
    llm = config["llm_config"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: llm[name] for name in (*names, "vocab_size", "rms_norm_eps", "max_position_embeddings")}
    rope = {"rope_type": "default", "rope_theta": float(llm["rope_theta"])}
    settings = {**sizes, "tie_word_embeddings": False, "attn_implementation": "eager", "hidden_act": "silu"}
    if kind == "mistral":
        return towers.randomised(
            MistralForCausalLM(MistralConfig(**settings, rope_parameters=rope, sliding_window=None))
        )
    rope |= {"rope_type": "dynamic", "factor": llm["rope_scaling"]["factor"]}
    return towers.randomised(LlamaForCausalLM(LlamaConfig(**settings, rope_parameters=rope)))


def language_names(tensors, config):
    """Tensors of Llama or Mistral by InternLM2's names: q, k and v packed group by group."""
    llm = config["llm_config"]
    groups = llm["num_key_value_heads"]
    renamed = {
        "language_model.model.tok_embeddings.weight": tensors["model.embed_tokens.weight"],
        "language_model.model.norm.weight": tensors["model.norm.weight"],
        "language_model.output.weight": tensors["lm_head.weight"],
    }
    for layer in range(llm["num_hidden_layers"]):
        ours, theirs = f"language_model.model.layers.{layer}.", f"model.layers.{layer}."
        for our_name, their_name in DECODER_LAYER.items():
            renamed[f"{ours}{our_name}.weight"] = tensors[f"{theirs}{their_name}.weight"]
        parts = [tensors[f"{theirs}self_attn.{part}_proj.weight"].chunk(groups) for part in "qkv"]
        in_order = [part[group] for group in range(groups) for part in parts]
        renamed[ours + "attention.wqkv.weight"] = torch.cat(in_order)
    return renamed


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradients_of(model, output):
    """Gradients of half the sum of the squared output, by the model's own names."""
    (output.square().sum() / 2).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(ours, renamed, config):
    expected = to_full_state(renamed, config["vision_config"]["num_attention_heads"])
    assert expected
    for name, gradient in expected.items():
        error = (ours[name] - gradient).abs().max() / gradient.abs().max()
        assert error < GRADIENT, (name, error)


@pytest.mark.parametrize(
    ("kind", "seqlens"),
    [
        ("llama", (48,)),
        ("mistral", (48,)),
        ("mistral", (1, 30, 17)),
        ("llama", (300, 20)),  # the first document is beyond max_position_embeddings: dynamic NTK for it alone
    ],
)
def test_decoder(kind, seqlens, config, checkpoint, pools):
    model = language_model(config, kind)
    vocabulary = config["llm_config"]["vocab_size"]
    ids = torch.randint(vocabulary, (sum(seqlens),), generator=torch.Generator().manual_seed(1))
    weights = language_names(weights_of(model), config)
    result = pools[1].run(oracles.decoder, checkpoint=checkpoint, weights=weights, ids=ids, seqlens=seqlens)[0]
    logits = torch.cat([model(document[None]).logits[0] for document in ids.split(seqlens)])
    assert (result.output - logits).abs().max() < LOGITS
    assert_same_gradients(result.gradients, language_names(gradients_of(model, logits), config), config)


@pytest.mark.parametrize("swapped", ["gate and up", "key and value", "query heads"])
def test_a_mistake_in_the_weights_is_seen(swapped, config, checkpoint, pools):
    model = language_model(config, "mistral")
    ids = torch.arange(20)
    weights = language_names(weights_of(model), config)
    layer = "language_model.model.layers.1."
    gate, up, packed = (
        layer + name for name in ("feed_forward.w1.weight", "feed_forward.w3.weight", "attention.wqkv.weight")
    )
    heads = weights[packed].unflatten(0, (config["llm_config"]["num_key_value_heads"], 4, -1))  # q, q, k, v
    if swapped == "gate and up":
        weights[gate], weights[up] = weights[up], weights[gate]
    else:
        order = [0, 1, 3, 2] if swapped == "key and value" else [1, 0, 2, 3]
        weights[packed] = heads[:, order].flatten(0, 2)
    result = pools[1].run(oracles.decoder, checkpoint=checkpoint, weights=weights, ids=ids, seqlens=[20])[0]
    with torch.no_grad():
        assert (result.output - model(ids[None]).logits[0]).abs().max() > 1000 * LOGITS


TOWERS = {
    "300M": {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
    "6B": towers.LARGE,
    "mixed": {"norm_type": "layer_norm", "qk_normalization": True, "qkv_bias": True},
}


@pytest.mark.parametrize(
    ("kind", "size", "select_layer"),
    [
        *((kind, size, layer) for kind in ("300M", "6B") for size, layer in ((56, -1), (84, -2), (56, 0), (84, -1))),
        ("mixed", 56, -1),
    ],
)
def test_tower(kind, size, select_layer, pools):
    """84 pixels are a grid of 6 x 6 for a position embedding of 4 x 4."""
    config = towers.small_config(**TOWERS[kind]) | {"select_layer": select_layer}
    model = towers.by_transformers(config["vision_config"])
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    run = towers.Run(config, towers.published_names(weights_of(model)), pixels)
    result = pools[1].run(towers.ours, runs=[run], layout=ParallelConfig())[0][0]
    states = towers.hidden_states(model, pixels)
    assert torch.equal(states[-1], model(pixels).last_hidden_state)  # nothing comes after the layers
    assert (result.output - states[select_layer]).abs().max() < HIDDEN
    if select_layer == -1:
        assert_same_gradients(result.gradients, towers.published_names(gradients_of(model, states[-1])), config)


@pytest.mark.parametrize("forgotten", ["q_norm", "k_norm"])
def test_a_forgotten_norm_of_the_6b_tower_is_seen(forgotten, pools):
    """Planted break: a weight of ones in place of the checkpoint's."""
    config = towers.small_config()
    model = towers.by_transformers(config["vision_config"])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    weights = towers.published_names(weights_of(model))
    weights |= {name: torch.ones_like(value) for name, value in weights.items() if forgotten in name}
    run = towers.Run(config, weights, pixels)
    result = pools[1].run(towers.ours, runs=[run], layout=ParallelConfig())[0][0]
    with torch.no_grad():
        assert (result.output - towers.hidden_states(model, pixels)[-1]).abs().max() > 100 * HIDDEN
