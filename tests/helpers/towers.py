"""Small InternVits of both kinds, by transformers' own class and by ours in any layout.

The names of `InternVLVisionModel` are brought to those of a published checkpoint here, so that both sides hold the
same weights. What runs our side is for use inside a `WorkerPool`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from helpers.hf_names import to_full_state
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full
from megatron_v2pe.workshop.synthetic.small_model import small_internvl2

LARGE = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
"""What InternViT-6B has and InternViT-300M has not."""
LAYER = {
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    **{f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias") for ours, theirs in (
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.q_norm", "attention.q_norm"),
        ("attn.k_norm", "attention.k_norm"),
        ("attn.proj", "attention.projection_layer"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    )},
}  # fmt: skip
"""Names within a layer: of a published checkpoint, of transformers."""


def small_config(heads: int = 5, ffn: int = 44, llm_heads: int = 30, **vision: Any) -> dict[str, Any]:
    """Return the `config.json` of a small model with a 6B tower; 30 heads of its decoder divide by 1, 2, 3 and 5.

    Args:
        heads: of the tower, each 8 wide.
        ffn: width of the tower's MLP.
        llm_heads: of the decoder, each 4 wide.
        vision: other fields of the tower.
    """
    tower = {
        **LARGE,
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_hidden_layers": 3,
        "intermediate_size": ffn,
        "layer_norm_eps": 1e-6,
    }
    decoder = {
        "hidden_size": 4 * llm_heads,
        "num_attention_heads": llm_heads,
        "num_key_value_heads": llm_heads,
        "num_hidden_layers": 2,
        "intermediate_size": 4 * llm_heads,
        "vocab_size": 509,
        "max_position_embeddings": 256,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    return small_internvl2(56, 14, {**tower, **vision}, decoder)


def by_transformers(vision: dict[str, Any], seed: int = 0) -> Any:
    """Return transformers' tower of a `vision_config`, with random weights in which every tensor matters."""
    from transformers.models.internvl import InternVLVisionConfig, InternVLVisionModel

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
    sizes = {name: vision[name] for name in (*names, "image_size", "patch_size", "norm_type", "hidden_act")}
    bias, normed = vision["qkv_bias"], vision["qk_normalization"]
    config = InternVLVisionConfig(**sizes, attention_bias=bias, use_qk_norm=normed, attn_implementation="eager")
    return randomised(InternVLVisionModel(config), seed)


def randomised(model: Any, seed: int = 0) -> Any:
    """Draw weights of a size at which no part of a model is lost in another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = "norm" in name and name.endswith("weight") or "lambda" in name
            width = parameter.shape[-1] if parameter.dim() == 2 else 100
            parameter.copy_(1 + 0.2 * noise if around_one else noise * width**-0.5)
    return model.eval()


def published_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of transformers' tower by the names of a published checkpoint: q, k and v one after the other."""
    place = "vision_model.embeddings."
    renamed = {
        place + "class_embedding": tensors["embeddings.cls_token"],
        place + "position_embedding": tensors["embeddings.position_embeddings"],
        place + "patch_embedding.weight": tensors["embeddings.patch_embeddings.projection.weight"],
        place + "patch_embedding.bias": tensors["embeddings.patch_embeddings.projection.bias"],
    }
    for layer in range(sum(name.endswith("lambda_1") for name in tensors)):
        ours, theirs = f"vision_model.encoder.layers.{layer}.", f"encoder.layer.{layer}."
        renamed |= {ours + our: tensors[theirs + their] for our, their in LAYER.items() if theirs + their in tensors}
        for kind in ("weight", "bias"):
            parts = [tensors.get(f"{theirs}attention.{part}_proj.{kind}") for part in "qkv"]
            if parts[0] is not None:
                renamed[f"{ours}attn.qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
    return renamed


def hidden_states(model: Any, pixels: Tensor) -> list[Tensor]:
    """Return what transformers' tower computes: embeddings, then the output of every layer."""
    states = [model.embeddings(pixels)]
    for layer in model.encoder.layer:
        states.append(layer(states[-1]))
    return states


@dataclass(frozen=True)
class Run:
    """What our tower is run with."""

    hf_config: dict[str, Any]
    weights: dict[str, Tensor]
    """Of the tower, by published name."""
    pixels: Tensor
    """[tiles, 3, side, side]."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `ModelOptions`."""
    drop_path: DropPathKey | None = None
    dtype: torch.dtype = torch.float32
    planted_break: str | None = None
    """`padding`: heads that are padding hold numbers; `own statistics`: a rank norms by its own heads alone."""


@dataclass(frozen=True)
class Outcome:
    """What our tower gave."""

    output: Tensor
    gradients: dict[str, Tensor]
    """Gradients of half the sum of the squared outputs, by checkpoint key."""


def ours(run: Run, layout: ParallelConfig) -> Outcome:
    """Run our tower on this rank."""
    options = ModelOptions(params_dtype=run.dtype, **run.options)
    with built(run.hf_config, layout, options, StridePolicy("default"), -1) as model:
        tower = model.vision_model
        heads = model.internvl.vision.num_attention_heads
        with torch.no_grad():
            whole = gather_full(model, lambda parameter: parameter.detach())
        weights = {name: tensor.to(run.dtype) for name, tensor in to_full_state(run.weights, heads).items()}
        load_full(model, whole | weights)
        output = tower(run.pixels.to(run.dtype), run.drop_path)
        (output.square().sum() / 2).backward()
        gradients = gather_full(model, lambda parameter: parameter.grad)
        part = {name: value for name, value in gradients.items() if name.startswith("vision_model.")}
        return Outcome(output.detach().clone(), part)
