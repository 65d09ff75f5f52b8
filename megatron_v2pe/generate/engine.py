"""A model on this rank as generation sees it: image features, embeddings, lean layers, logits of chosen rows.

It holds what outlives a batch; a batch of sequences being continued is a `Session` (`session.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.generate.arena import LEAST_BYTES, Arena
from megatron_v2pe.generate.lean_layers import LeanLayer, lean_layers, lean_norm, linear
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.stages import Stages, in_step
from megatron_v2pe.generate.static_step import StaticStep
from megatron_v2pe.generate.tiles import ImageTiles
from megatron_v2pe.generate.vision_cache import TILES_AT_ONCE, VisionCache
from megatron_v2pe.kernels.choice import use_triton
from megatron_v2pe.kernels.tiles import normalise_tiles
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.parallel import topology

PREFILL_TOKENS = 16384
"""Tokens prefilled at once by default, over all context-parallel ranks."""


class Engine:
    """A model's pipeline stage, ready to generate."""

    def __init__(
        self,
        model: InternVLModel,
        vision_cache: VisionCache | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        static: bool | None = None,
    ) -> None:
        """Read the model.

        Args:
            model: this rank's pipeline stage, in evaluation mode, its weights loaded (those of norms are copied).
            vision_cache: where image features are kept; one of the default size by default.
            prefill_tokens: most prompt tokens run at once, over all context-parallel ranks.
            static: decode by steps whose tensors stay where they are (`steps_ahead.py`); by default on CUDA where one
                process has the whole model. Several processes exchange tokens and partial results in every step, part
                of it by the host, which a graph cannot hold: they decode operation by operation.

        Raises:
            ConfigError: sequence parallelism, or a layer the engine does not know.
        """
        assert not model.training, "generation needs the model in evaluation mode"
        if prefill_tokens < 1:
            raise ConfigError(f"prefill_tokens is {prefill_tokens}, expected 1 or more")
        self.model, self.prefill_tokens = model, prefill_tokens
        self.vision_cache = VisionCache() if vision_cache is None else vision_cache
        self.groups, self.coordinates = model.pg_collection, model.coordinates
        self.stages = Stages(self.groups.pp, topology.model_copy_group())
        decoder: Any = model.language_model.decoder
        self.layers: list[LeanLayer] = []
        self._steps: dict[int, StaticStep] = {}
        self.read_again()
        weight = next(iter(decoder.parameters()))
        self.dtype, self.device = weight.dtype, weight.device
        self.hidden_size: int = model.config.hidden_size
        self.static = self.stages.alone and use_triton(weight) if static is None else static
        assert self.stages.alone or not self.static, "static steps are for one process"
        layer = self.layers[0]
        least = LEAST_BYTES if self.device.type == "cuda" else 0
        self.arena = Arena(len(self.layers), layer.groups, layer.head_dim, self.dtype, self.device, least)
        """Keys and values of static steps, kept from one batch to the next."""
        self._steps_of = self.arena.moves

    def read_again(self) -> None:
        """Read the model's layers, after weights that were copied, such as those of norms, have changed.

        Raises:
            ConfigError: a layer the engine does not know.
        """
        decoder: Any = self.model.language_model.decoder
        self.layers, self._steps = lean_layers(list(decoder.layers), self.groups.tp), {}
        if self.stages.last:
            self._final_norm = lean_norm(decoder.final_layernorm)
            self._head = self.model.language_model.head_weight()[: self.model.internvl.llm.vocab_size]

    def release(self) -> None:
        """Let go of the model, its process groups, and the memory of caches and captured steps.

        The engine cannot be used any more, whoever still refers to it.
        """
        vars(self).clear()

    def features(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return features [own tiles, tokens_per_tile, hidden] of those tiles of all prompts that this rank encodes.

        Ranks that share a tower call this together; others need not wait for each other.

        Raises:
            DataError: an image cannot be read; the same on all ranks of a tower.
        """
        parts = self.own_tiles(prompts)
        count = sum(map(len, parts))
        if not count:
            per_tile = self.model.internvl.tokens_per_tile
            return torch.empty(0, per_tile, self.hidden_size, dtype=self.dtype, device=self.device)
        tiles: Iterable[Tensor] = chain.from_iterable(parts)
        if self.coordinates.tensor_model_parallel_size > 1 and not self.coordinates.replicated_vision:
            tiles = in_step(tiles, TILES_AT_ONCE, self.groups.tp)
        return self.vision_cache.encode(tiles, count, self._encode)

    def own_tiles(self, prompts: Sequence[Prompt]) -> list[Tensor | ImageTiles]:
        """Return for each prompt the run of tiles this rank encodes when they are asked together, in this order."""
        mine = self.coordinates.tiles(sum(len(prompt.tiles) for prompt in prompts))
        parts, start = [], 0
        for prompt in prompts:
            parts.append(prompt.tiles[max(mine.start - start, 0) : max(mine.stop - start, 0)])
            start += len(prompt.tiles)
        return parts

    def _encode(self, tiles: Tensor) -> Tensor:
        """Return features of tiles, which are bytes [n, H, W, 3] or normalised [n, 3, H, W] already."""
        tiles = to_device(tiles, self.device)
        if tiles.dtype == torch.uint8:
            tiles = normalise_tiles(tiles, *NORMALISATION[self.model.internvl.normalize_type], self.dtype)
        return self.model.encode_images(tiles.to(self.dtype))

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Embed generated tokens to [n, hidden], on the first stage."""
        language = self.model.language_model
        ids = torch.tensor(tokens, device=self.device)
        if self.coordinates.tensor_model_parallel_size == 1:
            return F.embedding(ids, language.embedding.word_embeddings.weight)
        return language.embed(ids).squeeze(1)

    def step(self, count: int) -> StaticStep:
        """Return the static step of so many sequences, made once for as long as the arena stays where it is."""
        if self._steps_of != self.arena.moves:
            self._steps, self._steps_of = {}, self.arena.moves
        if count not in self._steps:
            embedding = self.model.language_model.embedding.word_embeddings.weight
            parts = embedding, self.layers, self.logits, self.arena
            self._steps[count] = StaticStep(count, *parts, capture=self.device.type == "cuda")
        return self._steps[count]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [n, vocab_size] of hidden states [n, hidden], gathered over ranks, on the last stage."""
        hidden = self._final_norm(hidden)
        if self.coordinates.tensor_model_parallel_size == 1:
            return linear(hidden, self._head)
        return self.model.language_model.logits(hidden.unsqueeze(1))
