"""Which data-parallel rank takes which packs of a training step: as many for each, and their costs as even as can be.

All ranks wait for the one with the most to do, so the largest sum of costs decides how long a step takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from megatron_v2pe.errors import ConfigError


def round_robin(count: int, ranks: int) -> list[list[int]]:
    """Return the packs of each rank without regard to costs: rank r takes packs r, r + ranks, and so on.

    Raises:
        ConfigError: `count` packs cannot be shared out evenly, or there is no rank.
    """
    _check(count, ranks)
    return [list(range(rank, count, ranks)) for rank in range(ranks)]


def deal(costs: Sequence[float] | np.ndarray, ranks: int) -> list[list[int]]:
    """Return the packs of each rank, ascending, so that the largest sum of costs of a rank is small.

    Longest processing time first (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969), where a rank that
    has its share of packs is passed over; then packs of the heaviest rank are exchanged for others, one by one and at
    most as often as there are packs, while that lowers the heavier of the two ranks. Of equals the first pack and the
    first rank are taken, so that every process deals the same.

    Args:
        costs: of the packs of one step, for example `PackTable.attention_costs` of them.
        ranks: data-parallel ranks; the number of packs is a multiple of it.

    Raises:
        ConfigError: the packs cannot be shared out evenly, or there is no rank.
    """
    _check(len(costs), ranks)
    values = np.asarray(costs)
    hands = _longest_first(values, ranks)
    loads = np.array([values[hand].sum() for hand in hands])
    for _ in range(len(values)):
        if not _exchange(values, hands, loads):
            break
    return [sorted(hand) for hand in hands]


def _check(count: int, ranks: int) -> None:
    if ranks < 1:
        raise ConfigError(f"packs are dealt to {ranks} ranks")
    if count % ranks:
        raise ConfigError(f"{count} packs cannot be shared out evenly among {ranks} ranks")


def _longest_first(values: np.ndarray, ranks: int) -> list[list[int]]:
    hands: list[list[int]] = [[] for _ in range(ranks)]
    share = len(values) // ranks
    waiting: list[tuple[float, int]] = [(0, rank) for rank in range(ranks)]
    for pack in np.argsort(-values, kind="stable").tolist():
        load, rank = heappop(waiting)
        hands[rank].append(pack)
        if len(hands[rank]) < share:
            heappush(waiting, (load + values[pack].item(), rank))
    return hands


def _exchange(values: np.ndarray, hands: list[list[int]], loads: np.ndarray) -> bool:
    """Exchange a pack of the heaviest rank for one of another, the lightest that helps; return whether one does."""
    heaviest = int(loads.argmax())
    for other in np.argsort(loads, kind="stable").tolist():
        gap = loads[heaviest] - loads[other]
        moved = values[hands[heaviest]][:, None] - values[hands[other]][None, :]
        heavier = np.maximum(gap - moved, moved)  # of the two ranks, above what `other` has now
        give, take = np.unravel_index(heavier.argmin(), heavier.shape)
        if heavier[give, take] < gap:
            hands[heaviest][give], hands[other][take] = hands[other][take], hands[heaviest][give]
            loads[[heaviest, other]] = values[hands[heaviest]].sum(), values[hands[other]].sum()
            return True
    return False
