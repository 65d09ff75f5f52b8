"""HF names and layouts of an InternVL2 state, written out a second time for tests.

The converter has its own table; tests that compare the model with reference numbers use this one, so that a mistake in
either shows.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

_VISION = {
    "attn.proj": "self_attention.linear_proj",
    "mlp.fc1": "mlp.linear_fc1",
    "mlp.fc2": "mlp.linear_fc2",
    "attn.q_norm": "self_attention.q_layernorm",
    "attn.k_norm": "self_attention.k_layernorm",
    "norm1": "self_attention.linear_qkv.layer_norm",
    "norm2": "mlp.linear_fc1.layer_norm",
}
_LANGUAGE = {
    "attention.wqkv.weight": "self_attention.linear_qkv.weight",
    "attention.wo.weight": "self_attention.linear_proj.weight",
    "feed_forward.w2.weight": "mlp.linear_fc2.weight",
    "attention_norm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "ffn_norm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_SINGLE = {
    "vision_model.embeddings.class_embedding": "vision_model.class_token",
    "vision_model.embeddings.patch_embedding.weight": "vision_model.patch_embedding.weight",
    "vision_model.embeddings.patch_embedding.bias": "vision_model.patch_embedding.bias",
    "vision_model.embeddings.position_embedding": "vision_model.position_embedding",
    "mlp1.0.weight": "vision_projection.norm.weight",
    "mlp1.0.bias": "vision_projection.norm.bias",
    "mlp1.1.weight": "vision_projection.linear_fc1.weight",
    "mlp1.1.bias": "vision_projection.linear_fc1.bias",
    "mlp1.3.weight": "vision_projection.linear_fc2.weight",
    "mlp1.3.bias": "vision_projection.linear_fc2.bias",
    "language_model.model.tok_embeddings.weight": "language_model.embedding.word_embeddings.weight",
    "language_model.model.norm.weight": "language_model.decoder.final_layernorm.weight",
    "language_model.output.weight": "language_model.output_layer.weight",
}


def to_full_state(hf: dict[str, Tensor], vision_heads: int) -> dict[str, Tensor]:
    """Return the state by checkpoint key, whole tensors, from an HF state dict."""
    full: dict[str, Tensor] = {}
    for name, tensor in hf.items():
        if name in _SINGLE:
            full[_SINGLE[name]] = tensor
        elif match := re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.+)", name):
            key, value = _vision_layer(match[2], tensor, vision_heads)
            full[f"vision_model.decoder.layers.{match[1]}.{key}"] = value
        elif match := re.fullmatch(r"language_model\.model\.layers\.(\d+)\.(.+)", name):
            prefix = f"language_model.decoder.layers.{match[1]}."
            if match[2] == "feed_forward.w1.weight":
                up = hf[name.replace("w1", "w3")]
                full[prefix + "mlp.linear_fc1.weight"] = torch.cat([tensor, up])
            elif match[2] != "feed_forward.w3.weight":
                full[prefix + _LANGUAGE[match[2]]] = tensor
        else:
            raise KeyError(name)
    return full


def _vision_layer(name: str, tensor: Tensor, heads: int) -> tuple[str, Tensor]:
    if name in ("ls1", "ls2"):
        return name, tensor
    module, _, kind = name.rpartition(".")
    if module == "attn.qkv":  # all q, all k, all v  ->  q, k, v head by head
        return f"self_attention.linear_qkv.{kind}", tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    separator = "_" if module.startswith("norm") else "."
    return _VISION[module] + separator + kind, tensor
