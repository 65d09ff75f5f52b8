"""Which pack each document goes to: pack after pack, the largest first, under budgets of tokens, tiles and padding.

Documents stand in two rows, each with the largest first: long ones, which take at least as large a share of the tokens
of a pack as of its tiles, and wide ones, which take a larger share of its tiles. A pack takes from both rows, so that
neither budget is used up while much is left of the other. Where one row holds all documents, the budget of the other
cannot be exceeded and is not looked at.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import count

import numpy as np

from megatron_v2pe.data.packing.free_slots import NO_LIMIT, Chain, LimitedChain

LOOKS = 64
"""Documents of a row that are held against the padding budget of a pack before the row is given up for this pack."""


def fill_packs(
    tokens: np.ndarray, tiles: np.ndarray, padding: np.ndarray, max_tokens: int, max_tiles: int, max_padding: int
) -> np.ndarray:
    """Return the pack of each document, int64 [n]; packs are numbered in the order in which they are filled.

    A pack opens with the largest document left, by the larger of its shares of tokens and tiles. Of the documents that
    still fit, the largest of each row compete; the one that leaves less room, again by the larger share, is taken,
    until none fits. With one row, and no padding in the way, those are the packs of first fit decreasing: at most 11/9
    of the fewest there can be and 6/9 (G. Dósa, "The tight bound of first fit decreasing bin-packing algorithm", 2007),
    and as good as the fewest once some documents are small. O(n log n), also where tiles are always scarce.

    Args:
        tokens: int64 [n], each at least 1 and at most `max_tokens`.
        tiles: int64 [n], each at most `max_tiles`.
        padding: int64 [n], tokens that are added to each document.
        max_tokens: per pack, without padding.
        max_tiles: per pack.
        max_padding: per pack of more than one document.
    """
    heavy = tiles * max_tokens > tokens * max_tiles
    mixed = bool(heavy.any() and not heavy.all())
    may_pad_too_much = bool(np.any(padding * max_tokens > tokens * max_padding))
    watched = padding if may_pad_too_much else None
    long = _Row(np.flatnonzero(~heavy), tokens, tiles if mixed else None, watched)
    wide = _Row(np.flatnonzero(heavy), tiles, tokens if mixed else None, watched)
    lengths, widths, paddings = tokens.tolist(), tiles.tolist(), padding.tolist()
    owner = [0] * len(lengths)
    for pack in count():
        room, tile_room, padding_room = max_tokens, max_tiles, max_padding
        p, q = long.first(), wide.first()
        if p == long.count and q == wide.count:
            break
        take_long = q == wide.count or (p < long.count and long.own[p] * max_tiles >= wide.own[q] * max_tokens)
        while True:
            document = long.take(p) if take_long else wide.take(q)
            owner[document] = pack
            room -= lengths[document]
            tile_room -= widths[document]
            padding_room -= paddings[document]
            p = long.fitting(room, tile_room, padding_room)
            q = wide.fitting(tile_room, room, padding_room)
            if p == long.count and q == wide.count:
                break
            if p == long.count or q == wide.count:
                take_long = p < long.count
                continue
            a, b = long.documents[p], wide.documents[q]
            left_by_a = max((room - lengths[a]) * max_tiles, (tile_room - widths[a]) * max_tokens)
            left_by_b = max((room - lengths[b]) * max_tiles, (tile_room - widths[b]) * max_tokens)
            take_long = left_by_a <= left_by_b
    return np.array(owner, dtype=np.int64)


class _Row:
    """Documents sorted by the load that matters more to them, their own, the largest first; equals as they came."""

    def __init__(
        self, members: np.ndarray, own: np.ndarray, other: np.ndarray | None, padding: np.ndarray | None
    ) -> None:
        """Sort the members; loads are int64 [n] of all documents, None for one that is never too much."""
        order = members[np.argsort(-own[members], kind="stable")]
        self.count = len(order)
        self.documents: list[int] = order.tolist()
        self.own: list[int] = own[order].tolist()
        self._below: list[int] = (-own[order]).tolist()
        self._padding: list[int] | None = None if padding is None else padding[order].tolist()
        self._left = Chain(self.count) if other is None else LimitedChain(other[order])

    def take(self, place: int) -> int:
        """Return the document at a place, which is gone from then on."""
        self._left.take(place)
        return self.documents[place]

    def first(self) -> int:
        """Return the place of the largest document left, `count` for none."""
        return self._left.first(0, NO_LIMIT)

    def fitting(self, own: int, other: int, padding: int) -> int:
        """Return the place of the largest document left that needs no more than this, `count` for none."""
        place = self._left.first(bisect_left(self._below, -own), other)
        if self._padding is None:
            return place
        for _ in range(LOOKS):
            if place == self.count or self._padding[place] <= padding:
                return place
            place = self._left.first(place + 1, other)
        return self.count
