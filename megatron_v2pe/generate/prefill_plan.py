"""How prompts are cut into steps of prefill: pure arithmetic on lengths.

A step holds at most `budget` tokens. Short prompts share a step, packed without padding; a long one is cut into pieces,
each of which attends to the pieces before it through the cache. Every piece is a document of its own to the zigzag
layout, so that all context-parallel ranks have the same work in every step; `local_steps` says what is one rank's.

Example: prompts of 5, 3 and 9 tokens with a budget of 8 give the steps [5, 3], [8 of the third], [its last 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_v2pe.parallel.zigzag import ZigzagLayout


@dataclass(frozen=True)
class Piece:
    """A run of one prompt's tokens."""

    sequence: int
    start: int
    length: int
    last: bool
    """Whether the prompt ends with it."""


@dataclass(frozen=True)
class LocalPiece:
    """This rank's share of a run of prompt tokens that is prefilled at once."""

    sequence: int
    """Number of the sequence in the batch."""
    continues: bool
    """Whether earlier tokens of the sequence are cached, on this rank or another."""
    tokens: int
    """Its tokens here, padding included."""
    kept: Tensor
    """int64 [n]: those that are no padding, counted within the piece."""


@dataclass(frozen=True)
class LocalStep:
    """One step of prefill on this rank."""

    pieces: list[LocalPiece]
    rows: slice
    """Which of this rank's tokens it runs."""
    ends: list[tuple[int, int]]
    """Sequences whose prompt ends here on this rank, and the row, within the step, of their last token."""


def plan_steps(lengths: Sequence[int], budget: int) -> list[list[Piece]]:
    """Cut prompts into steps.

    Args:
        lengths: tokens of each prompt, at least 1.
        budget: most tokens of a step, at least 1.

    Returns:
        The steps; put one behind the other, their pieces are the prompts in order.
    """
    assert budget > 0 and all(length > 0 for length in lengths)
    steps: list[list[Piece]] = []
    room = 0
    for sequence, length in enumerate(lengths):
        start = 0
        while start < length:
            if room == 0 or (start == 0 and room < length <= budget):  # a prompt that fits into a step is not cut
                steps.append([])
                room = budget
            taken = min(room, length - start)
            steps[-1].append(Piece(sequence, start, taken, start + taken == length))
            start, room = start + taken, room - taken
    return steps


def local_steps(
    plan: Sequence[Sequence[Piece]], layout: ZigzagLayout, rank: int, device: torch.device
) -> list[LocalStep]:
    """Return what a rank does in every step.

    Args:
        plan: the steps.
        layout: of a pack whose documents are their pieces.
        rank: context-parallel rank.
        device: of the model.
    """
    real = layout.tokens_of(rank)
    ends = [piece.last for step in plan for piece in step]
    lengths = torch.tensor([piece.length for step in plan for piece in step])
    holders, places = layout.find(lengths.cumsum(0) - 1)
    steps, number, start = [], 0, 0
    for step in plan:
        first, pieces, finished = start, [], []
        for piece in step:
            tokens = layout.local_seqlens[number]
            kept = (real[start : start + tokens] >= 0).nonzero().squeeze(1).to(device)
            pieces.append(LocalPiece(piece.sequence, piece.start > 0, tokens, kept))
            if ends[number] and int(holders[number]) == rank:
                finished.append((piece.sequence, int(places[number]) - first))
            start += tokens
            number += 1
        steps.append(LocalStep(pieces, slice(first, start), finished))
    return steps
