"""Which replica of the model answers which questions: by what they cost, not by how many they are."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def share_out(costs: Sequence[float], replicas: int) -> list[list[int]]:
    """Deal questions out, the dearest first, each to the replica with the least so far.

    Args:
        costs: of each question, in any unit.
        replicas: copies of the model that work side by side.

    Returns:
        Of each replica the questions it answers, dearest first; ties by number. No replica carries more than 4/3 of
        what the best deal would give the busiest (Graham, 1969).
    """
    shares: list[list[int]] = [[] for _ in range(replicas)]
    loads = [(0.0, replica) for replica in range(replicas)]
    for question in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        load, replica = heapq.heappop(loads)
        shares[replica].append(question)
        heapq.heappush(loads, (load + costs[question], replica))
    return shares


def cost_of(prompt_tokens: int, tiles: int, new_tokens: int, tokens_per_tile: int) -> float:
    """Estimate what a question costs, in prompt tokens.

    A tile's encoding weighs as much as its own tokens again, an answer's token as four of the prompt, and attention
    grows with the square of the prompt.
    """
    return prompt_tokens + float(tokens_per_tile) * tiles + 4.0 * new_tokens + prompt_tokens**2 / 65536
