"""InternLM2: every tensor of the language model in an HF checkpoint, and its place in ours."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_v2pe.checkpoint.hf.mappings import QueryGroups, Stacked, TensorMapping, mapped, vocabulary
from megatron_v2pe.checkpoint.hf.native_table import NATIVE_NAMES, NativeNames
from megatron_v2pe.checkpoint.hf.table import LANGUAGE_TABLES
from megatron_v2pe.families.internlm2.config import ARCHITECTURE
from megatron_v2pe.models.config_sections import LanguageConfig

_NATIVE = {
    r"\.tok_embeddings\.": ".embed_tokens.",
    r"\.attention\.wo\.": ".self_attn.o_proj.",
    r"\.attention\.": ".self_attn.",
    r"\.feed_forward\.w1\.": ".mlp.gate_proj.",
    r"\.feed_forward\.w3\.": ".mlp.up_proj.",
    r"\.feed_forward\.w2\.": ".mlp.down_proj.",
    r"\.attention_norm\.": ".input_layernorm.",
    r"\.ffn_norm\.": ".post_attention_layernorm.",
    r"^language_model\.output\.": "language_model.lm_head.",
}
NATIVE_NAMES.add(ARCHITECTURE, NativeNames(_NATIVE, apart=True))


@LANGUAGE_TABLES.register(ARCHITECTURE)
def language_table(llm: LanguageConfig) -> Iterator[TensorMapping]:
    """Yield the mappings of the language model's tensors."""
    source, target = "language_model.model", "language_model.decoder"
    embedding, output = "language_model.embedding.word_embeddings.weight", "language_model.output_layer.weight"
    yield vocabulary(f"{source}.tok_embeddings.weight", embedding, llm.vocab_size, llm.hidden_size)
    for layer in range(llm.num_layers):
        yield from _layer(llm, f"{source}.layers.{layer}", f"{target}.layers.{layer}")
    yield mapped(f"{source}.norm.weight", f"{target}.final_layernorm.weight", llm.hidden_size)
    if not llm.tie_word_embeddings:
        yield vocabulary("language_model.output.weight", output, llm.vocab_size, llm.hidden_size)


def _layer(llm: LanguageConfig, source: str, target: str) -> Iterator[TensorMapping]:
    """Yield those of one layer; `w1` is the gate, `w3` goes up, `w2` down."""
    hidden, ffn = llm.hidden_size, llm.ffn_hidden_size
    groups = QueryGroups(llm.num_attention_heads, llm.num_query_groups)
    qkv, fc1 = f"{target}.self_attention.linear_qkv", f"{target}.mlp.linear_fc1"
    proj = f"{target}.self_attention.linear_proj.weight"
    yield mapped(f"{source}.attention.wqkv.weight", f"{qkv}.weight", llm.qkv_size, hidden, rows=groups.grouped)
    yield mapped(f"{source}.attention.wo.weight", proj, hidden, llm.query_size)
    yield mapped(f"{source}.feed_forward.w1.weight", f"{fc1}.weight", ffn, hidden, rows=Stacked(0, 2))
    yield mapped(f"{source}.feed_forward.w3.weight", f"{fc1}.weight", ffn, hidden, rows=Stacked(1, 2))
    yield mapped(f"{source}.feed_forward.w2.weight", f"{target}.mlp.linear_fc2.weight", hidden, ffn)
    yield mapped(f"{source}.attention_norm.weight", f"{qkv}.layer_norm_weight", hidden)
    yield mapped(f"{source}.ffn_norm.weight", f"{fc1}.layer_norm_weight", hidden)
