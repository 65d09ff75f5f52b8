"""A batch of sequences being continued, step by step, under tensor, pipeline and context parallelism.

`Session.prefill` runs the prompts and gives the logits of the first new tokens (the model's last layer runs for the
last token of each prompt only); `Session.decode` takes one chosen token per sequence and gives the logits of the next.
Layers run lean (`lean_layers.py`), attention goes through the cache (`cached_attention.py`). Positions of generated
tokens follow the prompt's last as `continue_positions` says; rotary scaling is decided once, from the prompt's length.
Context-parallel ranks share the prompt's tokens and its cache, and all compute the one token of a decode step.

An engine with static steps (`steps_ahead.py`) keeps its cache in an arena, and `Session.decode` reads it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.device.rank_errors import raise_on_all_ranks
from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.errors import MemoryShortageError
from megatron_v2pe.generate.arena import ArenaCache
from megatron_v2pe.generate.cached_attention import ArenaAttention, CachedAttention
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.kv_cache import CHUNK, KVCache, cache_bytes, owner, room_for
from megatron_v2pe.generate.lean_layers import LeanLayer, rotation
from megatron_v2pe.generate.memory import Need, demand, return_large_blocks, shortage_as_error
from megatron_v2pe.generate.prefill_plan import LocalPiece, Piece, local_steps, plan_steps
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.models.micro_batch import MicroBatch, PackCutter, TensorPack
from megatron_v2pe.parallel import topology
from megatron_v2pe.v2pe.position_ids import Ticks, continue_positions

Result = TypeVar("Result")
_STEPS_AHEAD = 64
"""Decode steps whose rotary angles are made at once."""
_CHOSEN_IMAGE_TOKEN = -1
"""Stands, while a prompt is cut, for an image token that is part of an answer, and for which there is no image."""


class Session:
    """Sequences in flight; every rank of a copy of the model has one and calls it in step with the others."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], reserve: int = CHUNK) -> None:
        """Plan the prefill and make room.

        Args:
            engine: the model.
            prompts: what to continue, at least one, of any lengths; in order of length they pack best.
            reserve: new tokens to make room for from the start.

        Raises:
            MemoryShortageError: there is too little memory for it, on this rank or another of the copy.
        """
        self.engine, self._place = engine, engine.coordinates
        self._prompts = list(prompts)
        self._last_ticks = [prompt.position_ticks.last for prompt in prompts]
        self._denominator = prompts[0].position_ticks.denominator
        self._names = list(range(len(prompts)))
        self._generated = 0
        self._ahead: tuple[Tensor, Tensor] | None = None
        plan = plan_steps([len(prompt.input_ids) for prompt in prompts], engine.prefill_tokens)
        self._batch = self._cut([piece for step in plan for piece in step])
        self._plan = local_steps(plan, self._batch.layout, self._place.context_parallel_rank, engine.device)
        room = -(-reserve // self._place.context_parallel_size)
        held = _kept([piece for step in self._plan for piece in step.pieces], len(prompts))
        layer = engine.layers[0]
        shape = len(engine.layers), layer.groups, layer.head_dim, engine.dtype
        capacities = [count + room for count in held]
        if engine.static:
            self.cache = self._in_arena(capacities)
        else:
            demand(self._needed(cache_bytes(capacities, *shape)), engine.device, topology.model_copy_group())
            self.cache = _raise_in_copy(lambda: KVCache(capacities, *shape, engine.device))
        attention = ArenaAttention if engine.static else CachedAttention
        self._attention = attention(self.cache, engine.groups.cp, layer.head_dim**-0.5)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._names)

    def _in_arena(self, capacities: Sequence[int]) -> ArenaCache:
        """Take places in the arena; it gives way to a smaller one where nothing else makes room for the prompts."""
        arena, device, group = self.engine.arena, self.engine.device, topology.model_copy_group()
        places = sum(map(room_for, capacities))
        if arena.bytes_to_take(places):
            arena.release()
        try:
            demand(self._needed(arena.bytes_to_take(places)), device, group)
        except MemoryShortageError:
            if not arena.layers:
                raise
            arena.release()
            demand(self._needed(arena.bytes_to_take(places)), device, group)
        return _raise_in_copy(lambda: ArenaCache(arena, capacities))

    def _cut(self, pieces: Sequence[Piece]) -> MicroBatch:
        """Return this rank's share of all pieces, with the routing of image features to their tokens."""
        model, device = self.engine.model, self.engine.device
        pack = TensorPack(  # on the host: what is planned from it would wait for the device
            torch.cat([self._ids_to_cut(prompt) for prompt in self._prompts]),
            Ticks.joined([prompt.position_ticks for prompt in self._prompts], self._denominator),
            [piece.length for piece in pieces],
            num_tiles=[len(prompt.tiles) for prompt in self._prompts],
        )
        facts = model.image_token_id, model.internvl.tokens_per_tile, model.pre_process
        batch = PackCutter(self._place, *facts).cut(pack)
        ends = [self._last_ticks[piece.sequence] for piece in pieces]  # a piece is scaled as its whole prompt
        batch = replace(
            batch,
            input_ids=batch.input_ids.masked_fill(batch.input_ids == _CHOSEN_IMAGE_TOKEN, model.image_token_id),
            last_ticks=(*ends, *[0] * (len(batch.layout.seqlens) - len(ends))),
        )
        return batch.mapped(lambda tensor: to_device(tensor, device))

    def _ids_to_cut(self, prompt: Prompt) -> Tensor:
        """Return a prompt's tokens, with another id for image tokens that were chosen in its answer."""
        asked = len(prompt.input_ids) - prompt.answered
        question, answer = prompt.input_ids[:asked], prompt.input_ids[asked:]
        return torch.cat([
            question, answer.masked_fill(answer == self.engine.model.image_token_id, _CHOSEN_IMAGE_TOKEN)
        ])  # fmt: skip

    def _needed(self, cached: int) -> int:
        """Return the bytes this rank is about to take."""
        engine, first = self.engine, self.engine.stages.first
        tiles = self._place.tiles(sum(len(prompt.tiles) for prompt in self._prompts)) if first else ()
        need = Need(
            cache_bytes=cached,
            tokens=len(self._batch.input_ids),
            step_tokens=max(step.rows.stop - step.rows.start for step in self._plan),
            tiles=len(tiles),
            tokens_per_tile=engine.model.internvl.tokens_per_tile,
            hidden_size=engine.hidden_size,
            head_dim=engine.layers[0].head_dim,
            widest=engine.layers[0].widest,
            itemsize=engine.dtype.itemsize,
        )
        return need.num_bytes

    def _features(self) -> Tensor | None:
        """Return features of the tiles this rank encodes, on the first stage; an error of one rank is raised on all."""
        engine, place = self.engine, self._place
        if not engine.stages.first:
            return raise_on_all_ranks(lambda: None, topology.model_copy_group())
        if place.tensor_model_parallel_size > 1 and not place.replicated_vision:
            # Ranks that share a tower exchange activations: one without memory cannot say so in between.
            return raise_on_all_ranks(lambda: engine.features(self._prompts), topology.model_copy_group())
        return _raise_in_copy(lambda: engine.features(self._prompts))

    @torch.inference_mode()
    def prefill(self) -> Tensor | None:
        """Run the prompts, once.

        Returns:
            Logits [sequences, vocab_size] of the first new tokens on the last pipeline stage, None on the others.

        Raises:
            DataError: an image cannot be read, by this rank or another of the copy.
            MemoryShortageError: memory ran out over images, of this rank or another of the copy.
        """
        engine, stages, batch = self.engine, self.engine.stages, self._batch
        if len(self._plan) > 1 and engine.device.type == "cpu":
            return_large_blocks()
        features = self._features()
        embedded = None if features is None else engine.model.embed(batch, features).squeeze(1)
        del features
        angles = engine.model.rotary.cos_sin(batch.position_ticks, batch.layout.local_seqlens, batch.last_ticks)
        cos, signed_sin = rotation(*angles)
        last = torch.zeros(len(self), engine.hidden_size, dtype=engine.dtype, device=engine.device)
        whole, top = (engine.layers[:-1], engine.layers[-1]) if stages.last else (engine.layers, None)
        for step in self._plan:
            hidden = self._receive(step.rows.stop - step.rows.start) if embedded is None else embedded[step.rows]
            factors = cos[step.rows], signed_sin[step.rows]
            attend = partial(self._attend_prompt, pieces=step.pieces)
            for layer in whole:
                hidden = layer(hidden, *factors, attend)
            if top is not None:
                self._attention.store(top.number, *top.keys_and_values(hidden, *factors), step.pieces)
            self.cache.extend(_kept(step.pieces, len(self)))
            if not stages.last:
                stages.send(hidden)
            for sequence, row in step.ends:
                last[sequence] = hidden[row]
        self._prompts, self._plan = [], []
        del self._batch
        if top is None:
            return None
        if self._place.context_parallel_size > 1:  # each row comes from the rank that holds the token
            dist.all_reduce(last, group=engine.groups.cp)
        return engine.logits(self._finish(top, last))

    def _finish(self, top: LeanLayer, last: Tensor) -> Tensor:
        """Run the model's last layer for the last token of each prompt; of the others nothing but the cache is read.

        Args:
            top: the layer, whose keys and values of all tokens are cached.
            last: what comes into it, [sequences, hidden], the same on all context-parallel ranks.
        """
        ticks = Ticks(torch.tensor(self._last_ticks, device=self.engine.device), self._denominator)
        cos, signed_sin = rotation(*self.engine.model.rotary.cos_sin(ticks, [1] * len(self), self._last_ticks))
        self._attention.begin_decode([False] * len(self))
        return top(last, cos, signed_sin, self._attention.decode)

    def _attend_prompt(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[LocalPiece]
    ) -> Tensor:
        output = self._attention.prefill(layer, query.flatten(1, 2), key, value, pieces)
        return output.unflatten(1, query.shape[1:3])

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Tensor | None:
        """Add one token to each sequence.

        Args:
            tokens: the same on every rank.

        Returns:
            Logits [sequences, vocab_size] of the tokens after them on the last pipeline stage, None on the others.
        """
        assert len(tokens) == len(self), f"{len(tokens)} tokens, {len(self)} sequences"
        engine, stages = self.engine, self.engine.stages
        size, rank = self._place.context_parallel_size, self._place.context_parallel_rank
        self._attention.begin_decode([owner(self._generated, name, size) == rank for name in self._names])
        cos, signed_sin = self._next_rotation()
        self._generated += 1
        hidden = engine.embed(tokens) if stages.first else self._receive(len(self))
        for layer in engine.layers:
            hidden = layer(hidden, cos, signed_sin, self._attention.decode)
        if not stages.last:
            stages.send(hidden)
            return None
        return engine.logits(hidden)

    def keep(self, rows: Sequence[int]) -> None:
        """Continue these sequences only, in ascending order; the cache of the others is freed."""
        self.cache.keep(rows)
        self._names = [self._names[row] for row in rows]
        self._last_ticks = [self._last_ticks[row] for row in rows]
        self._ahead = None

    def _receive(self, tokens: int) -> Tensor:
        return self.engine.stages.receive((tokens, self.engine.hidden_size), self.engine.dtype, self.engine.device)

    def _next_rotation(self) -> tuple[Tensor, Tensor]:
        """Return factors [sequences, 1, 1, d] that rotate the tokens about to be added, made for some steps at once."""
        step = self._generated % _STEPS_AHEAD
        if step == 0 or self._ahead is None:
            self._ahead = self.factors(self._generated - step, _STEPS_AHEAD)
        cos, signed_sin = self._ahead
        return cos[:, step], signed_sin[:, step]

    def factors(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return factors [sequences, count, 1, 1, d] that rotate each sequence's `count` tokens from `first` on."""
        rotary = self.engine.model.rotary
        ticks = [
            continue_positions(last + first * self._denominator, count, self._denominator) for last in self._last_ticks
        ]
        everyone = Ticks(to_device(torch.cat(ticks), self.engine.device), self._denominator)
        cos, signed_sin = rotation(*rotary.cos_sin(everyone, [count] * len(self), self._last_ticks))
        shape = (len(self), count, 1, 1, -1)
        return cos.view(shape), signed_sin.view(shape)


def _raise_in_copy(action: Callable[[], Result]) -> Result:
    """Run an action that exchanges nothing with other ranks; an error of one rank, too little memory included, is
    raised on all ranks of this copy of the model.
    """

    def watched() -> Result:
        with shortage_as_error():
            return action()

    return raise_on_all_ranks(watched, topology.model_copy_group())


def _kept(pieces: Sequence[LocalPiece], sequences: int) -> list[int]:
    """Count the tokens of each sequence that pieces leave in this rank's cache."""
    counts = [0] * sequences
    for piece in pieces:
        counts[piece.sequence] += len(piece.kept)
    return counts
