"""The decoder: Megatron-Core's `GPTModel` with positions handed in and a head on chosen tokens.

Rotary angles are made once per forward from explicit positions and reach every layer through the packed-sequence
object, so `GPTModel` is built without position embedding of its own. Names of parameters are Megatron-Core's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.models import padding
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import LanguageConfig
from megatron_v2pe.models.head import LossSums, Targets, masked_logits, weighted_nll_sum
from megatron_v2pe.models.layer_specs import block_spec, layer_spec
from megatron_v2pe.models.norms import HeadNorm
from megatron_v2pe.models.transformer_config import LayerConfig, ModelOptions, common_settings
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.parallel.packed_sequence import PackedSequence


@dataclass(frozen=True)
class DecoderParts:
    """What the layers of a family's decoder are made of, where they are not the usual ones."""

    layer: Callable[[str, bool], ModuleSpec]
    """Spec of a layer, of the kind of spec (`local` or `te`) and whether a recompute finds attention's result kept."""
    settings: Callable[[LanguageConfig], Mapping[str, Any]]
    """Fields of Megatron-Core's configuration: norms, activation, biases."""


def usual_layer(spec: str, keep_attention: bool) -> ModuleSpec:
    """Return the spec of a layer that attends to what came before."""
    norms = {"query_norm": HeadNorm, "key_norm": HeadNorm}
    return layer_spec(spec, AttnMaskType.causal, keep_attention=keep_attention, **norms)


def usual_settings(llm: LanguageConfig) -> dict[str, Any]:
    """Return the settings of RMSNorm, SwiGLU and linears without biases, but for those of queries, keys and values.

    Queries and keys are normalised head by head where the model says so.
    """
    return {
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "add_qkv_bias": llm.qkv_bias,
        "head_norms": llm.qk_layernorm,
    }


USUAL = DecoderParts(usual_layer, usual_settings)
DECODERS: Registry[DecoderParts] = Registry("decoder", FAMILIES, "layers")
"""Parts of decoders that are not the usual ones, by what `llm_config.architectures` states."""


def decoder_parts(llm: LanguageConfig) -> DecoderParts:
    """Return what the layers of a model are made of."""
    return DECODERS.find(llm.architecture) or USUAL


def decoder_config(model: InternVLConfig, parallel: ParallelConfig, options: ModelOptions) -> LayerConfig:
    """Return the decoder's configuration."""
    llm = model.llm
    return LayerConfig(
        num_layers=llm.num_layers,
        hidden_size=llm.hidden_size,
        num_attention_heads=llm.num_attention_heads,
        num_query_groups=llm.num_query_groups,
        kv_channels=llm.head_dim,
        ffn_hidden_size=llm.ffn_hidden_size,
        layernorm_epsilon=llm.norm_eps,
        init_method_std=llm.initializer_range,
        sequence_parallel=parallel.sequence_parallel,
        context_parallel_size=parallel.context_parallel_size,
        cp_comm_type=parallel.cp_comm_type,
        attention_kernels=parallel.attention_backend,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        num_layers_in_first_pipeline_stage=parallel.num_layers_in_first_pipeline_stage,
        num_layers_in_last_pipeline_stage=parallel.num_layers_in_last_pipeline_stage,
        variable_seq_lengths=True,
        **decoder_parts(llm).settings(llm),
        **options.decoder_recompute(),
        **common_settings(parallel.tensor_model_parallel_size, options),
    )


class LanguageModel(GPTModel):
    """One pipeline stage of the decoder."""

    def __init__(
        self,
        config: TransformerConfig,
        llm: LanguageConfig,
        spec: str,
        head_chunk_size: int,
        keeps_attention: Callable[[int], list[bool]],
        pre_process: bool,
        post_process: bool,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        """Build this stage's layers, with the embedding on the first stage and the head on the last.

        Args:
            config: Megatron-Core's configuration of the decoder.
            llm: the checkpoint's decoder.
            spec: `local` or `te`.
            head_chunk_size: supervised tokens projected to the vocabulary at a time.
            keeps_attention: says of each of so many layers whether a recompute finds attention's result kept.
            pre_process: this is the first stage.
            post_process: this is the last stage.
            pg_collection: process groups.
        """
        kept = keeps_attention(get_num_layers_to_build(config, None, pg_collection.pp.rank()))
        layers = [decoder_parts(llm).layer(spec, keep) for keep in kept]
        super().__init__(
            config,
            block_spec(layers, final_norm=True),
            vocab_size=llm.vocabulary_rows(config.tensor_model_parallel_size),
            max_sequence_length=llm.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=llm.tie_word_embeddings,
            position_embedding_type="none",
            scatter_embedding_sequence_parallel=config.sequence_parallel,
            pg_collection=pg_collection,
        )
        self.unpadded_vocab_size = llm.vocab_size
        if pre_process:
            padding.mark(self.embedding.word_embeddings.weight, 0, llm.vocab_size, pg_collection.tp)
        self.head_chunk_size = head_chunk_size
        if post_process:
            padding.mark(self.output_layer.weight, 0, llm.vocab_size, pg_collection.tp)
            # The head takes chosen rows of the gathered sequence, not a slice of it.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = pg_collection.tp.size() > 1

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embed [S] token ids to [S, 1, hidden]; under sequence parallelism to this rank's slice of it."""
        return self.embedding(input_ids=input_ids.unsqueeze(0), position_ids=None)

    def decode(self, hidden: Tensor | None, packed_sequence: PackedSequence) -> Tensor:
        """Run this stage's layers.

        Args:
            hidden: [S, 1, hidden] on the first stage, S this context-parallel rank's tokens, split once more over
                tensor-parallel ranks under sequence parallelism; None on later stages, which take what the previous
                stage sent.
            packed_sequence: the pack's layout and this rank's rotary angles.

        Returns:
            Hidden states of the same shape.
        """
        return self.decoder(hidden_states=hidden, attention_mask=None, packed_seq_params=packed_sequence)

    def loss_sums(self, hidden: Tensor, targets: Targets) -> LossSums:
        """Return the weighted sums of token losses; see `head.weighted_nll_sum`. `hidden` is what `decode` returned."""
        return weighted_nll_sum(
            self.output_layer,
            self.head_weight(),
            hidden,
            targets,
            self.unpadded_vocab_size,
            self.head_chunk_size,
        )

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits [n, vocab_size] of the chosen rows (all by default), gathered over ranks, without padding."""
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        selected = hidden if rows is None else hidden.index_select(0, rows)
        logits, _ = masked_logits(self.output_layer, self.head_weight(), selected, self.unpadded_vocab_size)
        gathered = tensor_parallel.gather_from_tensor_model_parallel_region(logits, group=self.pg_collection.tp)
        return gathered[:, : self.unpadded_vocab_size]

    def head_weight(self) -> Tensor:
        """Return the projection's own weight, or the embedding's where the two are tied."""
        weight = self.output_layer.weight
        return self.shared_embedding_or_output_weight() if weight is None else weight
