"""InternVL on one screen: embed text, encode images, put features in their places, decode, compute the loss.

The result is that of one process, for every layout; but a rank embeds, encodes and decodes only what is its own: packs
arrive cut (`micro_batch.py`), and features are brought to the ranks that hold their tokens. Positions come in as
integer ticks and become rotary angles once per forward. The vision tower and the embedding live on the first pipeline
stage, the head on the last; ticks and document lengths reach every stage.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_v2pe.models.adapters import draw_by, need_draws
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.fusion import fire_forward_hooks, place_features, touch
from megatron_v2pe.models.head import LossSums
from megatron_v2pe.models.language_model import LanguageModel, decoder_config
from megatron_v2pe.models.micro_batch import MicroBatch
from megatron_v2pe.models.padding import without_padding
from megatron_v2pe.models.projector import Projector, pixel_shuffle
from megatron_v2pe.models.tile_recompute import encode_in_parts
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.models.vision_tower import TOWERS
from megatron_v2pe.parallel.attention.context_parallel import exchange_named
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.parallel.packed_sequence import PackedSequence
from megatron_v2pe.parallel.token_draws import TokenDraws
from megatron_v2pe.parallel.topology import coordinates_of, single_rank_group
from megatron_v2pe.v2pe.rotary import RotaryEmbedding

VISION_PARTS = ("vision_model.", "vision_projection.")
"""What stands before the names of the tower's and the projector's parameters."""


class InternVLModel(MegatronModule):
    """One pipeline stage of InternVL."""

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
        config = decoder_config(model, parallel, options)
        super().__init__(config)
        self.model_type = ModelType.encoder_or_decoder
        self.internvl = model
        self.image_token_id = image_token_id
        self.pg_collection = pg_collection
        self.coordinates = coordinates_of(parallel, pg_collection)
        self.pre_process = pg_collection.pp.rank() == 0
        self.post_process = pg_collection.pp.rank() == pg_collection.pp.size() - 1
        self.share_embeddings_and_output_weights = model.llm.tie_word_embeddings
        self.rotary = rotary
        if self.pre_process:
            vision_groups = _vision_groups(pg_collection, self.coordinates.replicated_vision)
            self.vision_model = TOWERS.get(model.vision.architecture)(model, parallel, options, vision_groups)
            self.tower_tiles = options.tower_tiles
            shuffled = model.vision.hidden_size * round(1 / model.downsample_ratio) ** 2
            self.vision_projection = Projector(self.vision_model.config, shuffled, model.llm.hidden_size, vision_groups)
        self.language_model = LanguageModel(
            config,
            model.llm,
            options.spec,
            options.head_chunk_size,
            options.keeps_attention,
            self.pre_process,
            self.post_process,
            pg_collection,
        )

    def forward(self, batch: MicroBatch, rows: Tensor | None = None) -> Tensor | LossSums:
        """Run one packed micro-batch through this stage.

        Args:
            batch: this rank's share of the pack.
            rows: among this rank's tokens, those to return logits of, all by default; used without targets.

        Returns:
            Last stage: this rank's part of the weighted loss sum, a scalar; with that of each data set (`LossSums`)
            where the targets name sets; logits [n, vocab_size] where the batch has no targets. Earlier stages: hidden
            states to send on.
        """
        hidden = self._first_stage(batch) if self.pre_process else None
        hidden = self.language_model.decode(hidden, self._packed_sequence(batch))
        if not self.post_process:
            return hidden
        if batch.targets is None:
            return self.language_model.logits(hidden, rows)
        sums = self.language_model.loss_sums(hidden, batch.targets)
        return sums if batch.targets.num_sets else sums.total

    def encode_images(self, pixel_values: Tensor, drop_path: DropPathKey | None = None) -> Tensor:
        """Turn tiles [tiles, 3, size, size] into features [tiles, tokens_per_tile, hidden]."""
        learns = self.training and torch.is_grad_enabled()
        # Of a frozen tower nothing is kept, and tiles encoded again would give the projector what it has kept.
        if learns and self.tower_tiles and any(p.requires_grad for p in self.vision_model.parameters()):
            return encode_in_parts(
                lambda part, first: self._encode(part, drop_path and drop_path.from_tile(first, len(pixel_values))),
                pixel_values,
                self.tower_tiles,
                self.config,
            )
        return self._encode(pixel_values, drop_path)

    def _encode(self, pixel_values: Tensor, drop_path: DropPathKey | None) -> Tensor:
        patches = touch(self.vision_model(pixel_values, drop_path)[:, 1:], self.vision_model.unused_parameters())
        shuffled = pixel_shuffle(patches, self.internvl.downsample_ratio, self.internvl.ps_version)
        if drop_path is not None and self.training and need_draws(self.vision_projection):
            tiles, tokens = shuffled.shape[:2]
            draw_by(self.vision_projection, drop_path.token_draws(tiles, tokens, shuffled.device))
        return self.vision_projection(shuffled)

    def logits_of_last(self, batch: MicroBatch, features: Tensor | None) -> Tensor:
        """Return logits [vocab_size] that predict the token after the last of one document of this rank alone.

        Args:
            batch: the document.
            features: what `encode_images` gave for all its images, or None.
        """
        hidden = self.embed(batch, self._no_features() if features is None else features)
        hidden = self.language_model.decode(hidden, self._packed_sequence(batch))
        return self.language_model.logits(hidden, batch.input_ids.new_tensor([batch.input_ids.shape[0] - 1]))[0]

    def embed(self, batch: MicroBatch, features: Tensor) -> Tensor:
        """Embed this rank's tokens and put image features in their places.

        Args:
            batch: this rank's share of the pack.
            features: of the tiles this rank encodes, [own tiles, tokens_per_tile, hidden].

        Returns:
            [S, 1, hidden], under sequence parallelism this rank's slice of it.
        """
        tensor_group, place = self.pg_collection.tp, self.coordinates
        hidden, features = self.language_model.embed(batch.input_ids), features.flatten(0, 1)
        if batch.routing is None:  # a pack of text: no features, through which the tower receives zero gradients
            return place_features(hidden, features, batch.input_ids[:0])
        if place.split_rows and not place.replicated_vision:  # each rank brings its own rows' share of the gradients
            features = tensor_parallel.copy_to_tensor_model_parallel_region(features, group=tensor_group)
        exchange = self.pg_collection.tp_cp if place.replicated_vision else self.pg_collection.cp
        arrived, rows = batch.routing.deliver(features, exchange), batch.routing.receive_rows
        if not place.split_rows or place.sequence_parallel:
            return place_features(hidden, arrived, rows)
        hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden, group=tensor_group)
        hidden = place_features(hidden, arrived, rows)
        return tensor_parallel.gather_from_sequence_parallel_region(
            hidden, tensor_parallel_output_grad=False, group=tensor_group
        )

    def _packed_sequence(self, batch: MicroBatch) -> PackedSequence:
        """Return layout and rotary angles, made once for all layers."""
        cos, sin = self.rotary.cos_sin(batch.position_ticks, batch.layout.local_seqlens, batch.last_ticks)
        in_order = exchange_named(self.config.cp_comm_type).needs_documents_in_order
        pack = PackedSequence.build(batch.layout, cos, sin, in_order)
        if self.training and batch.drop_path is not None and need_draws(self.language_model):
            places = torch.arange(sum(batch.layout.lengths), device=batch.input_ids.device)
            places = batch.layout.shard(places, self.coordinates.context_parallel_rank, 0)
            pack.draws = TokenDraws(batch.drop_path.seed, batch.drop_path.pack, places)
        return pack

    def _first_stage(self, batch: MicroBatch) -> Tensor:
        """Return text and images as one sequence, this rank's tokens of it."""
        for module in (self.vision_model, self.vision_projection):
            fire_forward_hooks(module)
        features = self._no_features()
        if batch.pixel_values is not None:
            features = self.encode_images(batch.pixel_values, batch.drop_path)
        hidden = self.embed(batch, features)
        if self.training and not hidden.requires_grad:  # all before the decoder is frozen; recompute needs an input
            hidden = hidden.detach().requires_grad_()  # that asks for a gradient
        return hidden

    def _no_features(self) -> Tensor:
        """Return features [0, tokens_per_tile, hidden] of no tiles, through which the tower gets zero gradients."""
        weight = self.language_model.embedding.word_embeddings.weight
        features = weight.new_empty(0, self.internvl.tokens_per_tile, self.config.hidden_size)
        features = touch(features, self.vision_model.parameters_in_order_of_use())
        return touch(features, self.vision_projection.parameters())

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what a distributed checkpoint stores; of replicated towers, one copy counts."""
        state = without_padding(super().sharded_state_dict(*args, **kwargs))
        if self.coordinates.replicated_vision:
            for name, entry in state.items():
                if name.startswith(VISION_PARTS):
                    pipeline, _, data = entry.replica_id
                    entry.replica_id = (pipeline, self.coordinates.tensor_model_parallel_rank, data)
        return state

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Take what the previous stage sent (called by Megatron-Core's schedules)."""
        self.language_model.set_input_tensor(input_tensor)  # type: ignore[arg-type]

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """Return the weight that embedding and head share (called when gradients are finalised)."""
        return self.language_model.shared_embedding_or_output_weight()


def _vision_groups(groups: ProcessGroupCollection, replicated: bool) -> ProcessGroupCollection:
    """Return the tower's groups: no pipeline, no context parallelism, one rank where each has a whole tower."""
    own = ProcessGroupCollection()
    own.cp = own.pp = single_rank_group()
    own.tp = single_rank_group() if replicated else groups.tp
    return own
