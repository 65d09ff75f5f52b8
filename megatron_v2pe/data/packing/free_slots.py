"""Find the first free slot at or behind a given one; on request, the first whose load is below a limit.

Both classes answer the same two calls; a slot is taken once and never given back. `FreeSlots` knows no loads and is the
faster one. `FreeSlotsByLoad` keeps a load for each slot and passes over those above a limit.
"""

from __future__ import annotations

import numpy as np

NO_LIMIT = 1 << 61
"""A limit above every load."""
_TAKEN = 1 << 62


class FreeSlots:
    """Slots 0 to n-1. Each points at itself while it is free and at a later slot once it is taken.

    A search follows the pointers, and lets each slot on its way point to the next but one (path halving, as in
    union-find), so that the next search is shorter.
    """

    def __init__(self, count: int) -> None:
        """Start with all `count` slots free."""
        self._next = list(range(count + 1))

    def take(self, slot: int) -> None:
        """Take a slot that is free."""
        self._next[slot] = slot + 1

    def first(self, slot: int, limit: int) -> int:
        """Return the first free slot at or behind `slot`, the count for none; `limit` has no meaning here."""
        pointers = self._next
        while (behind := pointers[slot]) != slot:
            pointers[slot] = pointers[behind]
            slot = behind
        return slot


class FreeSlotsByLoad:
    """Slots with a load each, as the leaves of a binary tree; every node holds the least load that is free below it.

    Loads 5 2 7 3, all four slots free; the number before the colon is the node's:

                    1: 2
              2: 2        3: 3
            4: 5  5: 2  6: 7  7: 3
       slot   0     1     2     3

    The first slot from 0 on with a load of at most 4: node 4 holds 5, too much; node 5 to its right holds 2: slot 1.
    From slot 2 on at most 4: node 6 holds 7, node 7 to its right holds 3: slot 3. From slot 2 on at most 2: neither
    node holds so little; above them, node 3 is a right child and node 1 is the root, so there is none.
    """

    def __init__(self, loads: np.ndarray) -> None:
        """Start with all slots free; `loads` is int64 [n], at most 2**61."""
        self._count = len(loads)
        self._leaves = 1 << max(self._count - 1, 0).bit_length()
        nodes = np.full(2 * self._leaves, _TAKEN, dtype=np.int64)
        nodes[self._leaves : self._leaves + self._count] = loads
        row = self._leaves
        while row > 1:
            nodes[row // 2 : row] = nodes[row : 2 * row].reshape(-1, 2).min(axis=1)
            row //= 2
        self._nodes: list[int] = nodes.tolist()

    def take(self, slot: int) -> None:
        """Take a slot that is free; the nodes above it hold the least load of what is left, up to one that is equal."""
        nodes, node, least = self._nodes, slot + self._leaves, _TAKEN
        nodes[node] = least
        while node > 1:
            sibling = node ^ 1
            least = min(least, nodes[sibling])
            node >>= 1
            if nodes[node] == least:
                return
            nodes[node] = least

    def first(self, slot: int, limit: int) -> int:
        """Return the first free slot at or behind `slot` whose load is at most `limit`, the count for none."""
        if slot >= self._count:
            return self._count
        nodes, node = self._nodes, slot + self._leaves
        if nodes[node] <= limit:
            return slot
        # Climb until the node to the right, a sibling of a left child, has a light enough slot below it.
        while node & 1 or nodes[node + 1] > limit:
            node >>= 1
            if node <= 1:
                return self._count
        node += 1
        # Descend to the first such slot: to the left where the left half holds one, otherwise to the right.
        while node < self._leaves:
            left = 2 * node
            node = left if nodes[left] <= limit else left + 1
        return node - self._leaves
