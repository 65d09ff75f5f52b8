"""InternVL2 with InternLM2: every HF tensor and its place in the Megatron-Core checkpoint, as one table."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_v2pe.checkpoint.hf.mappings import SAME_ORDER, HeadByHead, MappingTable, RowOrder, TensorMapping
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import LanguageConfig, VisionConfig


def internvl2_table(model: InternVLConfig) -> MappingTable:
    """Return the table of an InternVL2 model whose language model is InternLM2."""
    return MappingTable((*_vision(model.vision), *_projector(model), *_language(model.llm)))


def _same(name: str, key: str, *shape: int, order: RowOrder = SAME_ORDER) -> TensorMapping:
    return TensorMapping(name, shape, key, shape[0], order=order)


def _vision(vision: VisionConfig) -> Iterator[TensorMapping]:
    hidden, patch = vision.hidden_size, vision.patch_size
    source, target = "vision_model.embeddings", "vision_model"
    positions = (vision.image_size // patch) ** 2 + 1
    yield _same(f"{source}.class_embedding", f"{target}.class_token", 1, 1, hidden)
    yield _same(
        f"{source}.patch_embedding.weight",
        f"{target}.patch_embedding.weight",
        hidden,
        vision.num_channels,
        patch,
        patch,
    )
    yield _same(f"{source}.patch_embedding.bias", f"{target}.patch_embedding.bias", hidden)
    yield _same(f"{source}.position_embedding", f"{target}.position_embedding", 1, positions, hidden)
    for layer in range(vision.num_layers):
        source, target = f"vision_model.encoder.layers.{layer}", f"vision_model.decoder.layers.{layer}"
        yield from _vision_layer(vision, source, target)


def _vision_layer(vision: VisionConfig, source: str, target: str) -> Iterator[TensorMapping]:
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    qkv, fc1 = f"{target}.self_attention.linear_qkv", f"{target}.mlp.linear_fc1"
    heads = HeadByHead(vision.num_attention_heads)
    yield _same(f"{source}.attn.qkv.weight", f"{qkv}.weight", 3 * hidden, hidden, order=heads)
    if vision.qkv_bias:
        yield _same(f"{source}.attn.qkv.bias", f"{qkv}.bias", 3 * hidden, order=heads)
    yield _same(f"{source}.attn.proj.weight", f"{target}.self_attention.linear_proj.weight", hidden, hidden)
    yield _same(f"{source}.attn.proj.bias", f"{target}.self_attention.linear_proj.bias", hidden)
    yield _same(f"{source}.mlp.fc1.weight", f"{fc1}.weight", ffn, hidden)
    yield _same(f"{source}.mlp.fc1.bias", f"{fc1}.bias", ffn)
    yield _same(f"{source}.mlp.fc2.weight", f"{target}.mlp.linear_fc2.weight", hidden, ffn)
    yield _same(f"{source}.mlp.fc2.bias", f"{target}.mlp.linear_fc2.bias", hidden)
    for norm, place in (("norm1", qkv), ("norm2", fc1)):
        yield _same(f"{source}.{norm}.weight", f"{place}.layer_norm_weight", hidden)
        yield _same(f"{source}.{norm}.bias", f"{place}.layer_norm_bias", hidden)
    yield _same(f"{source}.ls1", f"{target}.ls1", hidden)
    yield _same(f"{source}.ls2", f"{target}.ls2", hidden)


def _projector(model: InternVLConfig) -> Iterator[TensorMapping]:
    shuffled = model.vision.hidden_size * round(1 / model.downsample_ratio) ** 2
    hidden, target = model.llm.hidden_size, "vision_projection"
    yield _same("mlp1.0.weight", f"{target}.norm.weight", shuffled)
    yield _same("mlp1.0.bias", f"{target}.norm.bias", shuffled)
    yield _same("mlp1.1.weight", f"{target}.linear_fc1.weight", hidden, shuffled)
    yield _same("mlp1.1.bias", f"{target}.linear_fc1.bias", hidden)
    yield _same("mlp1.3.weight", f"{target}.linear_fc2.weight", hidden, hidden)
    yield _same("mlp1.3.bias", f"{target}.linear_fc2.bias", hidden)


def _language(llm: LanguageConfig) -> Iterator[TensorMapping]:
    source, target = "language_model.model", "language_model.decoder"
    yield _vocabulary(f"{source}.tok_embeddings.weight", "language_model.embedding.word_embeddings.weight", llm)
    for layer in range(llm.num_layers):
        yield from _language_layer(llm, f"{source}.layers.{layer}", f"{target}.layers.{layer}")
    yield _same(f"{source}.norm.weight", f"{target}.final_layernorm.weight", llm.hidden_size)
    if not llm.tie_word_embeddings:
        yield _vocabulary("language_model.output.weight", "language_model.output_layer.weight", llm)


def _vocabulary(name: str, key: str, llm: LanguageConfig) -> TensorMapping:
    return TensorMapping(name, (llm.vocab_size, llm.hidden_size), key, llm.vocab_size, may_be_padded=True)


def _language_layer(llm: LanguageConfig, source: str, target: str) -> Iterator[TensorMapping]:
    """One decoder layer; `wqkv` is grouped by key-value head on both sides, gate and up are stacked in `linear_fc1`."""
    hidden, ffn = llm.hidden_size, llm.ffn_hidden_size
    qkv_rows = (llm.num_attention_heads + 2 * llm.num_query_groups) * llm.head_dim
    qkv, fc1 = f"{target}.self_attention.linear_qkv", f"{target}.mlp.linear_fc1"
    yield _same(f"{source}.attention.wqkv.weight", f"{qkv}.weight", qkv_rows, hidden)
    yield _same(f"{source}.attention.wo.weight", f"{target}.self_attention.linear_proj.weight", hidden, hidden)
    yield TensorMapping(f"{source}.feed_forward.w1.weight", (ffn, hidden), f"{fc1}.weight", 2 * ffn)
    yield TensorMapping(f"{source}.feed_forward.w3.weight", (ffn, hidden), f"{fc1}.weight", 2 * ffn, first_row=ffn)
    yield _same(f"{source}.feed_forward.w2.weight", f"{target}.mlp.linear_fc2.weight", hidden, ffn)
    yield _same(f"{source}.attention_norm.weight", f"{qkv}.layer_norm_weight", hidden)
    yield _same(f"{source}.ffn_norm.weight", f"{fc1}.layer_norm_weight", hidden)
