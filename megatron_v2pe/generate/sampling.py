"""Which token comes next: greedy, or drawn after temperature, top-k and top-p, with a draw keyed by sequence and step.

A draw depends on (seed, name of the sequence, number of the token) alone, so that an answer depends neither on what
else is in its batch nor on the layout over processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_v2pe.base.keyed_random import uniform
from megatron_v2pe.errors import ConfigError

_PURPOSE = "next token"
_RESOLUTION = 1 << 53
NOT_FINITE = -1
"""Stands for a token whose logits are not all numbers; no vocabulary has a token of this id."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0
    """0 takes the most likely token; above, logits are divided by it and a token is drawn."""
    top_k: int = 0
    """Draw among the k most likely tokens only; 0: among all."""
    top_p: float = 1.0
    """Draw among the fewest tokens that together reach this probability (after top-k)."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: out of range.
        """
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature is {self.temperature}, expected 0 or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}, expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected above 0 and at most 1")


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that tokens are drawn with.

    Temperature first, then top-k, then top-p among what top-k left; what is left is normalised again. Tokens as likely
    as the last one top-k keeps are kept too, so that the choice does not depend on the order of equals.

    Args:
        logits: [n, vocab_size].
        sampling: its temperature is above 0.

    Returns:
        float64 [n, vocab_size], each row summing to 1.
    """
    assert sampling.temperature > 0, "greedy choice draws nothing"
    scaled = logits.to(torch.float64) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        last = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < last, -math.inf)
    chances = scaled.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        dropped = (before >= sampling.top_p).scatter(1, order, before >= sampling.top_p)
        chances = chances.masked_fill(dropped, 0.0)
        chances = chances / chances.sum(dim=-1, keepdim=True)
    return chances


def draw(chances: Tensor, points: Tensor) -> Tensor:
    """Return per row the first token at which the running sum of chances exceeds the row's point.

    Args:
        chances: float64 [n, vocab_size], rows summing to 1.
        points: float64 [n], in [0, 1).

    Returns:
        int64 [n]; never a token whose chance is 0.
    """
    sums = chances.cumsum(dim=-1)
    found = torch.searchsorted(sums, (points * sums[:, -1]).unsqueeze(1), right=True).squeeze(1)
    last = chances.shape[1] - 1 - (chances.flip(1) > 0).to(torch.int8).argmax(dim=1)
    return torch.minimum(found, last)


def point(seed: int, sequence: str, step: int) -> float:
    """Return the draw of one token of one sequence, in [0, 1)."""
    return uniform(_RESOLUTION, seed, sequence, step, purpose=_PURPOSE) / _RESOLUTION


def points(sampling: Sampling, sequences: Sequence[str], steps: Sequence[int]) -> Tensor:
    """Return the draws float64 [n] of tokens `steps` of sequences, on the host."""
    keys = zip(sequences, steps, strict=True)
    return torch.tensor([point(sampling.seed, *key) for key in keys], dtype=torch.float64)


def chosen(logits: Tensor, sampling: Sampling, draws: Tensor | None) -> Tensor:
    """Choose the next token of each sequence where the logits are; the host waits for nothing.

    Args:
        logits: [n, vocab_size]; -inf for tokens that must not come.
        sampling: how.
        draws: of the tokens, see `points`; None where temperature is 0.

    Returns:
        int64 [n].
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    assert draws is not None
    return draw(probabilities(logits, sampling), draws)


def marked(tokens: Tensor, logits: Tensor) -> Tensor:
    """Return tokens, `NOT_FINITE` where the logits they come from hold NaN or infinity; the host waits for nothing.

    A sum shows it: it is a number if and only if all are, as long as they are far below their type's largest number.
    It costs one pass over what has been written last, and is read with the tokens.

    Args:
        tokens: int64 [n].
        logits: [n, vocab_size] as the model gave them, no token left out.

    Returns:
        int64 [n].
    """
    return torch.where(logits.sum(dim=-1).isfinite(), tokens, NOT_FINITE)


def choose(
    logits: Tensor,
    sampling: Sampling,
    sequences: Sequence[str],
    steps: Sequence[int],
    of: Tensor | None = None,
) -> list[int]:
    """Choose the next token of each sequence.

    Args:
        logits: [n, vocab_size]; -inf for tokens that must not come.
        sampling: how.
        sequences: name of each sequence.
        steps: number of the token in its answer, from 0.
        of: the logits as the model gave them, to be looked at, see `marked`; None looks at nothing.
    """
    draws = points(sampling, sequences, steps).to(logits.device) if sampling.temperature > 0 else None
    tokens = chosen(logits, sampling, draws)
    return (tokens if of is None else marked(tokens, of)).tolist()
