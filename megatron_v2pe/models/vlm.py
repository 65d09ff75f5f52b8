"""InternVL2 on one screen: embed text, encode images, fuse, split the sequence, decode, compute the loss.

Positions come in as integer ticks and become rotary angles once per forward. The vision tower and the embedding live
on the first pipeline stage, the head on the last; ticks and document lengths reach every stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.fusion import fire_forward_hooks, fuse_image_features, touch
from megatron_v2pe.models.head import Targets
from megatron_v2pe.models.internvit import InternViT
from megatron_v2pe.models.language_model import LanguageModel
from megatron_v2pe.models.projector import Projector, pixel_shuffle
from megatron_v2pe.models.transformer_config import (
    ModelOptions,
    language_transformer_config,
    vision_transformer_config,
)
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.parallel.packed_sequence import PackedSequence
from megatron_v2pe.v2pe.rotary import RotaryEmbedding


class InternVLModel(MegatronModule):
    """One pipeline stage of InternVL2."""

    def __init__(
        self,
        model: InternVLConfig,
        parallel: ParallelConfig,
        options: ModelOptions,
        rotary: RotaryEmbedding,
        image_token_id: int,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        """Build this rank's part.

        Args:
            model: the checkpoint's architecture.
            parallel: parallel sizes; already initialised in `pg_collection`.
            options: precision, layer spec, recompute, drop path.
            rotary: ticks to angles; version, stride and scaling are decided there.
            image_token_id: id of `<IMG_CONTEXT>`.
            pg_collection: process groups.
        """
        config = language_transformer_config(model, parallel, options)
        super().__init__(config)
        self.model_type = ModelType.encoder_or_decoder
        self.internvl = model
        self.image_token_id = image_token_id
        self.pg_collection = pg_collection
        self.pre_process = pg_collection.pp.rank() == 0
        self.post_process = pg_collection.pp.rank() == pg_collection.pp.size() - 1
        self.share_embeddings_and_output_weights = model.llm.tie_word_embeddings
        self.rotary = rotary
        if self.pre_process:
            vision_config = vision_transformer_config(model, parallel, options)
            vision_groups = _whole_model_on_one_stage(pg_collection)
            self.vision_model = InternViT(
                vision_config, model.vision, model.select_layer, options.spec, options.recompute_vision, vision_groups
            )
            shuffled = model.vision.hidden_size * round(1 / model.downsample_ratio) ** 2
            self.vision_projection = Projector(vision_config, shuffled, model.llm.hidden_size, vision_groups)
        self.language_model = LanguageModel(
            config,
            model.llm,
            options.spec,
            options.head_chunk_size,
            self.pre_process,
            self.post_process,
            pg_collection,
        )

    def forward(
        self,
        input_ids: Tensor,
        position_ticks: Tensor,
        seqlens: Sequence[int],
        pixel_values: Tensor | None = None,
        targets: Targets | None = None,
        rows: Tensor | None = None,
        drop_path: DropPathKey | None = None,
    ) -> Tensor:
        """Run one packed micro-batch through this stage.

        Args:
            input_ids: int64 [S].
            position_ticks: int64 [S], positions times the lattice's denominator.
            seqlens: document lengths, Python integers summing to S.
            pixel_values: [tiles, 3, size, size], normalised; None without images and on later stages.
            targets: supervised rows; the result is then the weighted loss sum.
            rows: rows to return logits of, all by default; used without `targets`.
            drop_path: names the tower's stochastic-depth draws.

        Returns:
            Last stage: a scalar loss sum, or logits [n, vocab_size]. Earlier stages: hidden states to send on.
        """
        cos, sin = self.rotary.cos_sin(position_ticks, seqlens)
        pack = PackedSequence.build(seqlens, cos, sin)
        hidden = self._first_stage(input_ids, pixel_values, drop_path) if self.pre_process else None
        hidden = self.language_model.decode(hidden, pack)
        if not self.post_process:
            return hidden
        return (
            self.language_model.logits(hidden, rows)
            if targets is None
            else self.language_model.loss_sum(hidden, targets)
        )

    def encode_images(self, pixel_values: Tensor, drop_path: DropPathKey | None = None) -> Tensor:
        """Turn tiles [tiles, 3, size, size] into features [tiles, tokens_per_tile, hidden]."""
        patches = touch(self.vision_model(pixel_values, drop_path)[:, 1:], self.vision_model.unused_parameters())
        return self.vision_projection(pixel_shuffle(patches, self.internvl.downsample_ratio, self.internvl.ps_version))

    def logits_of_last(
        self, input_ids: Tensor, position_ticks: Tensor, image_features: Tensor | None, scaling_length: int
    ) -> Tensor:
        """Logits [vocab_size] that predict the token after the last of one document.

        Args:
            input_ids: int64 [S].
            position_ticks: int64 [S].
            image_features: what `encode_images` gave for all images, or None.
            scaling_length: length that decides rotary scaling, the prompt's.
        """
        cos, sin = self.rotary.cos_sin(position_ticks, [input_ids.shape[0]], scaling_length=scaling_length)
        pack = PackedSequence.build([input_ids.shape[0]], cos, sin)
        hidden = self.language_model.decode(self.fuse(input_ids, image_features), pack)
        return self.language_model.logits(hidden, input_ids.new_tensor([input_ids.shape[0] - 1]))[0]

    def fuse(self, input_ids: Tensor, image_features: Tensor | None) -> Tensor:
        """Embed [S] ids and put image features in their places: [S, 1, hidden]."""
        hidden = self.language_model.embed(input_ids)
        if image_features is None:
            return hidden
        return fuse_image_features(hidden, image_features, input_ids, self.image_token_id)

    def _first_stage(self, input_ids: Tensor, pixel_values: Tensor | None, drop_path: DropPathKey | None) -> Tensor:
        """Text and images as one sequence [S, 1, hidden], split over ranks under sequence parallelism."""
        for module in (self.vision_model, self.vision_projection):
            fire_forward_hooks(module)
        if pixel_values is not None and pixel_values.shape[0]:
            features = self.encode_images(pixel_values, drop_path)
        else:
            features = self._no_features()
        hidden = self.fuse(input_ids, features)
        if self.training and not hidden.requires_grad:  # all before the decoder is frozen; recompute needs an input
            hidden = hidden.detach().requires_grad_()  # that asks for a gradient
        if self.config.sequence_parallel:
            hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden, group=self.pg_collection.tp)
        return hidden

    def _no_features(self) -> Tensor:
        """Features [0, tokens_per_tile, hidden] of no tiles, through which the tower receives zero gradients."""
        weight = self.language_model.embedding.word_embeddings.weight
        features = weight.new_empty(0, self.internvl.tokens_per_tile, self.config.hidden_size)
        features = touch(features, self.vision_model.parameters_in_order_of_use())
        return touch(features, self.vision_projection.parameters())

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Take what the previous stage sent (called by Megatron-Core's schedules)."""
        self.language_model.set_input_tensor(input_tensor)  # type: ignore[arg-type]

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """Return the weight that embedding and head share (called when gradients are finalised)."""
        return self.language_model.shared_embedding_or_output_weight()


def _whole_model_on_one_stage(groups: ProcessGroupCollection) -> ProcessGroupCollection:
    """Groups of a module that is not pipelined: the pipeline group is this rank alone."""
    from megatron_v2pe.parallel.topology import single_rank_group

    alone = ProcessGroupCollection()
    alone.tp, alone.cp, alone.pp = groups.tp, groups.cp, single_rank_group()
    return alone
