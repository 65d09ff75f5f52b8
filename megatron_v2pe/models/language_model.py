"""The decoder: Megatron-Core's `GPTModel` with positions handed in and a head on chosen tokens.

Rotary angles are made once per forward from explicit positions and reach every layer through the packed-sequence
object, so `GPTModel` is built without position embedding of its own. Names of parameters are Megatron-Core's.
"""

from __future__ import annotations

from collections.abc import Callable

from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_v2pe.models.config_sections import LanguageConfig
from megatron_v2pe.models.head import Targets, masked_logits, weighted_nll_sum
from megatron_v2pe.models.layer_specs import block_spec, layer_spec
from megatron_v2pe.parallel.packed_sequence import PackedSequence


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
            keeps_attention: tells of each of so many layers whether a recompute finds attention's result kept.
            pre_process: this is the first stage.
            post_process: this is the last stage.
            pg_collection: process groups.
        """
        kept = keeps_attention(get_num_layers_to_build(config, None, pg_collection.pp.rank()))
        layers = [layer_spec(spec, AttnMaskType.causal, keep_attention=keep) for keep in kept]
        super().__init__(
            config,
            block_spec(layers, final_norm=True),
            vocab_size=llm.padded_vocab_size,
            max_sequence_length=llm.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=llm.tie_word_embeddings,
            position_embedding_type="none",
            scatter_embedding_sequence_parallel=config.sequence_parallel,
            pg_collection=pg_collection,
        )
        self.unpadded_vocab_size = llm.vocab_size
        self.head_chunk_size = head_chunk_size
        if post_process:  # the head takes chosen rows of the gathered sequence, not a slice of it
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

    def loss_sum(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Weighted sum of token losses; see `head.weighted_nll_sum`. `hidden` is what `decode` returned."""
        return weighted_nll_sum(
            self.output_layer,
            self.head_weight(),
            hidden,
            targets,
            self.unpadded_vocab_size,
            self.head_chunk_size,
        )

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits [n, vocab_size] of the chosen rows (all by default), gathered over ranks, padding stripped."""
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        selected = hidden if rows is None else hidden.index_select(0, rows)
        logits, _ = masked_logits(self.output_layer, self.head_weight(), selected, self.unpadded_vocab_size)
        gathered = tensor_parallel.gather_from_tensor_model_parallel_region(logits, group=self.pg_collection.tp)
        return gathered[:, : self.unpadded_vocab_size]

    def head_weight(self) -> Tensor:
        """The projection's own weight, or the embedding's where the two are tied."""
        weight = self.output_layer.weight
        return self.shared_embedding_or_output_weight() if weight is None else weight
