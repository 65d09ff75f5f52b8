"""Which places of a fixed order are still to be had: the first of them from a place on, at wish below a limit.

Both classes answer the same two calls; a place is taken once and never given back. `Chain` knows no limits and is the
faster, `LimitedChain` keeps a load per place and passes over those above a limit.
"""

from __future__ import annotations

import numpy as np

NO_LIMIT = 1 << 61
"""A limit above every load."""
_TAKEN = 1 << 62


class Chain:
    """Places 0 to n-1, each linked to one behind it once it is taken; links are shortened in passing."""

    def __init__(self, count: int) -> None:
        """Start with all `count` places."""
        self._link = list(range(count + 1))

    def take(self, place: int) -> None:
        """Take a place that is still there."""
        self._link[place] = place + 1

    def first(self, place: int, limit: int) -> int:
        """Return the first place left at or behind `place`, the count for none; here `limit` means nothing."""
        link = self._link
        while (behind := link[place]) != place:
            link[place] = link[behind]
            place = behind
        return place


class LimitedChain:
    """Places with a load each: a binary tree, every node of which holds the least load left below it."""

    def __init__(self, loads: np.ndarray) -> None:
        """Start with all places; `loads` int64 [n], at most 2**61."""
        self._count = len(loads)
        self._leaves = 1 << max(self._count - 1, 0).bit_length()
        nodes = np.full(2 * self._leaves, _TAKEN, dtype=np.int64)
        nodes[self._leaves : self._leaves + self._count] = loads
        row = self._leaves
        while row > 1:
            nodes[row // 2 : row] = nodes[row : 2 * row].reshape(-1, 2).min(axis=1)
            row //= 2
        self._nodes: list[int] = nodes.tolist()

    def take(self, place: int) -> None:
        """Take a place that is still there."""
        nodes, node, least = self._nodes, place + self._leaves, _TAKEN
        nodes[node] = least
        while node > 1:
            least = min(least, nodes[node ^ 1])
            node >>= 1
            if nodes[node] == least:
                return
            nodes[node] = least

    def first(self, place: int, limit: int) -> int:
        """Return the first place left at or behind `place` with a load of at most `limit`, the count for none."""
        if place >= self._count:
            return self._count
        nodes, node = self._nodes, place + self._leaves
        if nodes[node] > limit:
            while node & 1 or nodes[node + 1] > limit:  # a right child, or nothing in the right half beside it
                node >>= 1
                if node <= 1:
                    return self._count
            node += 1
            while node < self._leaves:
                node *= 2
                node += nodes[node] > limit
        return node - self._leaves
