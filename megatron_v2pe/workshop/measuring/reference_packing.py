"""What packing is held against: the least number of packs there can be, and the reference's way of packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


def l2_bound(sizes: np.ndarray, capacity: int) -> int:
    """Return a number of bins that no packing of these sizes can do without: the bound L2 of Martello and Toth.

    For a threshold a between 0 and half the capacity, items above capacity - a share a bin with none of at least a,
    items above half the capacity share one with none of their kind, and what the items from a to half the capacity
    need beyond the room beside the latter takes further bins. L2 is the largest such count over all a; only sizes that
    occur and 0 need to be tried.

    Source: S. Martello and P. Toth, "Lower bounds and reduction procedures for the bin packing problem", Discrete
    Applied Mathematics 28 (1990); also their book "Knapsack Problems" (1990), section 8.3. O(n log n).

    Args:
        sizes: int64 [n], none above `capacity`.
        capacity: of a bin.
    """
    ordered = np.sort(sizes.astype(np.int64))
    below = np.concatenate([[0], np.cumsum(ordered)])
    half = np.searchsorted(ordered, capacity // 2, side="right")
    thresholds = np.unique(np.concatenate([[0], ordered[:half]]))
    smallest = np.searchsorted(ordered, thresholds, side="left")
    # Above half the capacity in any case: at a = capacity / 2 the first kind is all of them.
    alone = np.maximum(np.searchsorted(ordered, capacity - thresholds, side="right"), half)
    room_beside = (alone - half) * capacity - (below[alone] - below[half])
    beyond = np.maximum(below[half] - below[smallest] - room_beside, 0)
    return int((len(ordered) - half - (-beyond // capacity)).max())


def two_budget_bound(tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int, parts: int = 8) -> int:
    """Return a number of packs that no packing under both budgets can do without.

    A pack that keeps both budgets also keeps every mean of them: its shares of tokens, weighted by w, and of tiles,
    weighted by 1 - w, are at most 1 in sum. The largest `l2_bound` over w = 0, 1/`parts`, ... 1 is returned.

    Args:
        tokens: int64 [n], none above `max_tokens`.
        tiles: int64 [n], none above `max_tiles`.
        max_tokens: of a pack.
        max_tiles: of a pack.
        parts: how finely w is varied.
    """
    shares = [(weight, parts - weight) for weight in range(parts + 1)]
    sizes = (ours * tokens * max_tiles + theirs * tiles * max_tokens for ours, theirs in shares)
    return max(l2_bound(size, parts * max_tokens * max_tiles) for size in sizes)


@dataclass(eq=False)
class _Buffer:
    documents: list[int] = field(default_factory=list)
    tokens: int = 0
    tiles: int = 0


def reference_packs(
    tokens: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int, max_buffer_size: int
) -> list[list[int]]:
    """Pack documents as one worker of the published code does, with `allow_overflow` off: nothing is ever split.

    Open packs stand in a list, most tiles first. A document goes into the first of them that has room for its tokens
    and tiles, or into a new one, and the pack takes its new place in the list. A pack whose tokens are used up leaves
    at once, then the first one as long as its tiles are used up or too many are open; at the end all leave in turn.
    A document without images counts as one tile.

    Args:
        tokens: of each document, none above `max_tokens`.
        tiles: of each document, none above `max_tiles`.
        max_tokens: per pack (`max_packed_tokens`).
        max_tiles: per pack (`num_images_expected`).
        max_buffer_size: packs that stay open.

    Returns:
        The documents of each pack, packs in the order in which they leave.
    """
    opened: list[_Buffer] = []
    packs: list[list[int]] = []
    for document, (length, images) in enumerate(zip(tokens, tiles, strict=True)):
        width = max(images, 1)
        assert length <= max_tokens and width <= max_tiles
        fitting = (b for b in opened if b.tiles + width <= max_tiles and b.tokens + length <= max_tokens)
        buffer = next(fitting, None)
        if buffer is None:
            buffer = _Buffer()
        else:
            opened.remove(buffer)
        buffer.documents.append(document)
        buffer.tokens += length
        buffer.tiles += width
        if buffer.tokens == max_tokens:
            packs.append(buffer.documents)
        else:
            place = next((i for i, other in enumerate(opened) if other.tiles < buffer.tiles), len(opened))
            opened.insert(place, buffer)
        while opened and (opened[0].tiles == max_tiles or len(opened) > max_buffer_size):
            packs.append(opened.pop(0).documents)
    return packs + [buffer.documents for buffer in opened]
