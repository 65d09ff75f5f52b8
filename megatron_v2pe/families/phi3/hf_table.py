"""Phi-3: every tensor of the language model in an HF checkpoint, and its place in ours.

`qkv_proj` holds all queries, then all keys, then all values; `gate_up_proj` all of gate, then all of up.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_v2pe.checkpoint.hf.mappings import QueryGroups, TensorMapping, mapped
from megatron_v2pe.checkpoint.hf.table import LANGUAGE_TABLES
from megatron_v2pe.checkpoint.hf.usual_rows import usual_rows
from megatron_v2pe.families.phi3.config import ARCHITECTURE
from megatron_v2pe.models.config_sections import LanguageConfig


@LANGUAGE_TABLES.register(ARCHITECTURE)
def language_table(llm: LanguageConfig) -> Iterator[TensorMapping]:
    """Yield the mappings of the language model's tensors; those of its layers alone are not the usual ones."""
    return usual_rows(llm, _layer)


def _layer(llm: LanguageConfig, theirs: str, ours: str) -> Iterator[TensorMapping]:
    """Yield those of one layer."""
    hidden, ffn = llm.hidden_size, llm.ffn_hidden_size
    qkv, fc1, fc2 = f"{ours}.self_attention.linear_qkv", f"{ours}.mlp.linear_fc1", f"{ours}.mlp.linear_fc2"
    proj = f"{ours}.self_attention.linear_proj.weight"
    groups = QueryGroups(llm.num_attention_heads, llm.num_query_groups)
    joint = f"{theirs}.self_attn.qkv_proj.weight"
    yield mapped(joint, f"{qkv}.weight", llm.qkv_size, hidden, rows=groups.part_by_part)
    yield mapped(f"{theirs}.self_attn.o_proj.weight", proj, hidden, llm.query_size)
    yield mapped(f"{theirs}.mlp.gate_up_proj.weight", f"{fc1}.weight", 2 * ffn, hidden)
    yield mapped(f"{theirs}.mlp.down_proj.weight", f"{fc2}.weight", hidden, ffn)
    yield mapped(f"{theirs}.input_layernorm.weight", f"{qkv}.layer_norm_weight", hidden)
    yield mapped(f"{theirs}.post_attention_layernorm.weight", f"{fc1}.layer_norm_weight", hidden)
