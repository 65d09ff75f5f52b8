"""Decoder and tower against independent implementations: Llama, Mistral and InternVLVisionModel of `transformers`.

Llama and Mistral compute what InternLM2 computes (RMSNorm, SwiGLU, grouped heads, half-split rotary embedding); only
names and the packing of q, k and v differ. Their models are built small, with weights in which every tensor matters.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.internvl import InternVLVisionConfig, InternVLVisionModel

from helpers import oracles
from helpers.golden import read_checkpoint
from helpers.hf_names import to_full_state

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
TOWER_LAYER = {
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    **{f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias") for ours, theirs in (
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.proj", "attention.projection_layer"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    )},
}  # fmt: skip


@pytest.fixture(scope="module")
def config(golden):
    return read_checkpoint(golden / "reference_checkpoint")[0]


@pytest.fixture
def checkpoint(golden):
    return str(golden / "reference_checkpoint")


def randomised(model, seed=0):
    """Draw weights of a size at which no part of the model is lost in another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = "norm" in name and name.endswith("weight") or "lambda" in name
            width = parameter.shape[-1] if parameter.dim() == 2 else 100
            parameter.copy_(1 + 0.2 * noise if around_one else noise * width**-0.5)
    return model.eval()


def language_model(config, kind):
    """A causal model of `transformers` with the sizes of the checkpoint's decoder."""
    llm = config["llm_config"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: llm[name] for name in (*names, "vocab_size", "rms_norm_eps", "max_position_embeddings")}
    rope = {"rope_type": "default", "rope_theta": float(llm["rope_theta"])}
    settings = {**sizes, "tie_word_embeddings": False, "attn_implementation": "eager", "hidden_act": "silu"}
    if kind == "mistral":
        return randomised(MistralForCausalLM(MistralConfig(**settings, rope_parameters=rope, sliding_window=None)))
    rope |= {"rope_type": "dynamic", "factor": llm["rope_scaling"]["factor"]}
    return randomised(LlamaForCausalLM(LlamaConfig(**settings, rope_parameters=rope)))


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


def vision_model(config):
    vision = config["vision_config"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
    sizes = {name: vision[name] for name in (*names, "image_size", "patch_size", "norm_type", "hidden_act")}
    options = {"attention_bias": True, "use_qk_norm": False, "attn_implementation": "eager"}
    return randomised(InternVLVisionModel(InternVLVisionConfig(**sizes, **options)))


def vision_names(tensors):
    """Tensors of InternVLVisionModel by InternViT's names: q, k and v one after the other."""
    place = "vision_model.embeddings."
    renamed = {
        place + "class_embedding": tensors["embeddings.cls_token"],
        place + "position_embedding": tensors["embeddings.position_embeddings"],
        place + "patch_embedding.weight": tensors["embeddings.patch_embeddings.projection.weight"],
        place + "patch_embedding.bias": tensors["embeddings.patch_embeddings.projection.bias"],
    }
    for layer in range(sum(name.endswith("lambda_1") for name in tensors)):
        ours, theirs = f"vision_model.encoder.layers.{layer}.", f"encoder.layer.{layer}."
        renamed |= {ours + our: tensors[theirs + their] for our, their in TOWER_LAYER.items()}
        for kind in ("weight", "bias"):
            parts = [tensors[f"{theirs}attention.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{ours}attn.qkv.{kind}"] = torch.cat(parts)
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


@pytest.mark.parametrize("select_layer", [-1, -2, 0])
@pytest.mark.parametrize("size", [56, 84])
def test_tower(size, select_layer, config, checkpoint, pools):
    """84 pixels are a grid of 6 x 6 for a position embedding of 4 x 4."""
    model = vision_model(config)
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    weights = vision_names(weights_of(model))
    arguments = {"checkpoint": checkpoint, "weights": weights, "pixel_values": pixels, "select_layer": select_layer}
    result = pools[1].run(oracles.tower, **arguments)[0]
    states = hidden_states(model, pixels)
    assert (result.output - states[select_layer]).abs().max() < HIDDEN
    if select_layer == -1:
        assert_same_gradients(result.gradients, vision_names(gradients_of(model, states[-1])), config)


def hidden_states(model, pixels):
    """Embeddings, then the output of every layer."""
    states = [model.embeddings(pixels)]
    for layer in model.encoder.layer:
        states.append(layer(states[-1]))
    assert torch.equal(states[-1], model(pixels).last_hidden_state)  # nothing comes after the layers
    return states
