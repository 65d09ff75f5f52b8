"""The rows of a decoder with Llama's names of tensors, which Qwen2, Qwen3, InternLM3 and many others share.

Queries, keys and values are three projections, with biases where the model has them; gate and up are two. Queries and
keys may have a norm of one head's width each. The names are those of the published InternVL folders, which put
`language_model.` before the names of the language model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from megatron_v2pe.checkpoint.hf.mappings import QueryGroups, Stacked, TensorMapping, mapped, vocabulary
from megatron_v2pe.models.config_sections import LanguageConfig

LayerRows = Callable[[LanguageConfig, str, str], Iterator[TensorMapping]]
"""Yields the mappings of one layer, from the model and how the layer's names begin in the HF checkpoint and in ours."""


def usual_layer_rows(llm: LanguageConfig, theirs: str, ours: str) -> Iterator[TensorMapping]:
    """Yield the mappings of one of Llama's layers; see `LayerRows`."""
    hidden, ffn = llm.hidden_size, llm.ffn_hidden_size
    attention = f"{ours}.self_attention"
    qkv, fc1 = f"{attention}.linear_qkv", f"{ours}.mlp.linear_fc1"
    groups = QueryGroups(llm.num_attention_heads, llm.num_query_groups)
    parts = (
        ("q", llm.query_size, groups.queries),
        ("k", llm.key_size, groups.keys),
        ("v", llm.key_size, groups.values),
    )
    for part, rows, kind in parts:
        yield mapped(f"{theirs}.self_attn.{part}_proj.weight", f"{qkv}.weight", rows, hidden, rows=kind)
        if llm.qkv_bias:
            yield mapped(f"{theirs}.self_attn.{part}_proj.bias", f"{qkv}.bias", rows, rows=kind)
    if llm.qk_layernorm:
        yield mapped(f"{theirs}.self_attn.q_norm.weight", f"{attention}.q_layernorm.weight", llm.head_dim)
        yield mapped(f"{theirs}.self_attn.k_norm.weight", f"{attention}.k_layernorm.weight", llm.head_dim)
    yield mapped(f"{theirs}.self_attn.o_proj.weight", f"{attention}.linear_proj.weight", hidden, llm.query_size)
    yield mapped(f"{theirs}.mlp.gate_proj.weight", f"{fc1}.weight", ffn, hidden, rows=Stacked(0, 2))
    yield mapped(f"{theirs}.mlp.up_proj.weight", f"{fc1}.weight", ffn, hidden, rows=Stacked(1, 2))
    yield mapped(f"{theirs}.mlp.down_proj.weight", f"{ours}.mlp.linear_fc2.weight", hidden, ffn)
    yield mapped(f"{theirs}.input_layernorm.weight", f"{qkv}.layer_norm_weight", hidden)
    yield mapped(f"{theirs}.post_attention_layernorm.weight", f"{fc1}.layer_norm_weight", hidden)


def usual_rows(llm: LanguageConfig, layer_rows: LayerRows = usual_layer_rows) -> Iterator[TensorMapping]:
    """Yield the mappings of all tensors of the language model; a tied output projection has none of its own.

    Args:
        llm: the language model.
        layer_rows: rows of a layer, for a family whose embedding, last norm and head have the usual names alone.
    """
    theirs, ours = "language_model.model", "language_model.decoder"
    size = (llm.vocab_size, llm.hidden_size)
    yield vocabulary(f"{theirs}.embed_tokens.weight", "language_model.embedding.word_embeddings.weight", *size)
    for number in range(llm.num_layers):
        yield from layer_rows(llm, f"{theirs}.layers.{number}", f"{ours}.layers.{number}")
    yield mapped(f"{theirs}.norm.weight", f"{ours}.final_layernorm.weight", llm.hidden_size)
    if not llm.tie_word_embeddings:
        yield vocabulary("language_model.lm_head.weight", "language_model.output_layer.weight", *size)
