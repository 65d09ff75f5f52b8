"""InternViT: every tensor of the tower in an HF checkpoint, and its place in ours."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_v2pe.checkpoint.hf.mappings import QueryGroups, TensorMapping, mapped
from megatron_v2pe.checkpoint.hf.table import TOWER_TABLES
from megatron_v2pe.families.internvit.config import ARCHITECTURE
from megatron_v2pe.models.config_sections import VisionConfig


@TOWER_TABLES.register(ARCHITECTURE)
def tower_table(vision: VisionConfig) -> Iterator[TensorMapping]:
    """Yield the mappings of the tower's tensors."""
    hidden, patch = vision.hidden_size, vision.patch_size
    source, target = "vision_model.embeddings", "vision_model"
    positions = (vision.image_size // patch) ** 2 + 1
    pixels = (vision.num_channels, patch, patch)
    yield mapped(f"{source}.class_embedding", f"{target}.class_token", 1, 1, hidden)
    yield mapped(f"{source}.patch_embedding.weight", f"{target}.patch_embedding.weight", hidden, *pixels)
    yield mapped(f"{source}.patch_embedding.bias", f"{target}.patch_embedding.bias", hidden)
    yield mapped(f"{source}.position_embedding", f"{target}.position_embedding", 1, positions, hidden)
    for layer in range(vision.num_layers):
        source, target = f"vision_model.encoder.layers.{layer}", f"vision_model.decoder.layers.{layer}"
        yield from _layer(vision, source, target)


def _layer(vision: VisionConfig, source: str, target: str) -> Iterator[TensorMapping]:
    """Yield those of one layer; its `qkv` has all queries, all keys, all values, and every head has its own key."""
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    attention, fc1 = f"{target}.self_attention", f"{target}.mlp.linear_fc1"
    qkv = f"{attention}.linear_qkv"
    heads = QueryGroups(vision.num_attention_heads, vision.num_attention_heads).part_by_part
    yield mapped(f"{source}.attn.qkv.weight", f"{qkv}.weight", 3 * hidden, hidden, rows=heads)
    if vision.qkv_bias:
        yield mapped(f"{source}.attn.qkv.bias", f"{qkv}.bias", 3 * hidden, rows=heads)
    yield mapped(f"{source}.attn.proj.weight", f"{attention}.linear_proj.weight", hidden, hidden)
    yield mapped(f"{source}.attn.proj.bias", f"{attention}.linear_proj.bias", hidden)
    yield mapped(f"{source}.mlp.fc1.weight", f"{fc1}.weight", ffn, hidden)
    yield mapped(f"{source}.mlp.fc1.bias", f"{fc1}.bias", ffn)
    yield mapped(f"{source}.mlp.fc2.weight", f"{target}.mlp.linear_fc2.weight", hidden, ffn)
    yield mapped(f"{source}.mlp.fc2.bias", f"{target}.mlp.linear_fc2.bias", hidden)
    for norm, place in (("norm1", qkv), ("norm2", fc1)):
        yield mapped(f"{source}.{norm}.weight", f"{place}.layer_norm_weight", hidden)
        if vision.norm_type == "layer_norm":
            yield mapped(f"{source}.{norm}.bias", f"{place}.layer_norm_bias", hidden)
    if vision.qk_normalization:  # over all heads, in their order
        for norm in ("q", "k"):
            yield mapped(f"{source}.attn.{norm}_norm.weight", f"{attention}.{norm}_layernorm.weight", hidden)
    yield mapped(f"{source}.ls1", f"{target}.ls1", hidden)
    yield mapped(f"{source}.ls2", f"{target}.ls2", hidden)
