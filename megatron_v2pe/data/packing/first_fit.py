"""Which pack each document goes to: pack after pack, the largest first, under budgets of tokens, tiles and padding.

Documents stand in two rows, each with the largest first: long ones, whose share of the tokens of a pack is at least
their share of its tiles, and wide ones, whose share of its tiles is the larger one. A pack takes from both rows, so
that neither budget is used up while much is left of the other. Where one row holds all documents, the budget of the
other cannot be exceeded and is not looked at.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import count

import numpy as np

from megatron_v2pe.data.packing.free_slots import NO_LIMIT, FreeSlots, FreeSlotsByLoad

LOOKS = 64
"""Documents of a row that are held against the padding budget of a pack before the row is given up for this pack."""
NONE_LEFT = -1


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
    waiting = _Waiting(tokens, tiles, padding, max_tokens, max_tiles, max_padding)
    lengths, widths, paddings = tokens.tolist(), tiles.tolist(), padding.tolist()
    pack_of = [0] * len(lengths)
    for pack in count():
        token_room, tile_room, padding_room = max_tokens, max_tiles, max_padding
        document = waiting.take_largest()
        if document == NONE_LEFT:
            break
        while document != NONE_LEFT:
            pack_of[document] = pack
            token_room -= lengths[document]
            tile_room -= widths[document]
            padding_room -= paddings[document]
            document = waiting.take_best_fit(token_room, tile_room, padding_room)
    return np.array(pack_of, dtype=np.int64)


class _Waiting:
    """The documents that are in no pack yet, in their two rows."""

    def __init__(
        self,
        tokens: np.ndarray,
        tiles: np.ndarray,
        padding: np.ndarray,
        max_tokens: int,
        max_tiles: int,
        max_padding: int,
    ) -> None:
        """Sort all documents into rows; arguments are those of `fill_packs`."""
        is_wide = tiles * max_tokens > tokens * max_tiles
        both = bool(is_wide.any() and not is_wide.all())
        may_pad_too_much = bool(np.any(padding * max_tokens > tokens * max_padding))
        watched = padding if may_pad_too_much else None
        self._long = _Row(np.flatnonzero(~is_wide), tokens, tiles if both else None, watched)
        self._wide = _Row(np.flatnonzero(is_wide), tiles, tokens if both else None, watched)
        self._max_tokens, self._max_tiles = max_tokens, max_tiles

    def take_largest(self) -> int:
        """Take the document with the largest share of a pack; `NONE_LEFT` where all are in packs."""
        long, wide = self._long, self._wide
        first_long, first_wide = long.first(), wide.first()
        if first_wide == wide.count:
            return long.take(first_long) if first_long < long.count else NONE_LEFT
        if first_long < long.count:
            # tokens / max_tokens against tiles / max_tiles, without a division
            if long.own[first_long] * self._max_tiles >= wide.own[first_wide] * self._max_tokens:
                return long.take(first_long)
        return wide.take(first_wide)

    def take_best_fit(self, token_room: int, tile_room: int, padding_room: int) -> int:
        """Take the document that fits and leaves the least room by its larger share; `NONE_LEFT` where none fits."""
        long, wide = self._long, self._wide
        at_long = long.fitting(token_room, tile_room, padding_room)
        at_wide = wide.fitting(tile_room, token_room, padding_room)
        if at_wide == wide.count:
            return long.take(at_long) if at_long < long.count else NONE_LEFT
        if at_long < long.count:
            max_tokens, max_tiles = self._max_tokens, self._max_tiles
            left_by_long = max(
                (token_room - long.own[at_long]) * max_tiles, (tile_room - long.other[at_long]) * max_tokens
            )
            left_by_wide = max(
                (token_room - wide.other[at_wide]) * max_tiles, (tile_room - wide.own[at_wide]) * max_tokens
            )
            if left_by_long <= left_by_wide:
                return long.take(at_long)
        return wide.take(at_wide)


class _Row:
    """Documents sorted by the load that matters more to them, their own, the largest first; equals as they came."""

    def __init__(
        self, members: np.ndarray, own: np.ndarray, other: np.ndarray | None, padding: np.ndarray | None
    ) -> None:
        """Sort the members; loads are int64 [n] of all documents, None for one that is never too much."""
        order = members[np.argsort(-own[members], kind="stable")]
        self.count = len(order)
        self._documents: list[int] = order.tolist()
        self.own: list[int] = own[order].tolist()
        self.other: list[int] = [] if other is None else other[order].tolist()
        self._below: list[int] = (-own[order]).tolist()
        self._padding: list[int] | None = None if padding is None else padding[order].tolist()
        self._free = FreeSlots(self.count) if other is None else FreeSlotsByLoad(other[order])

    def take(self, place: int) -> int:
        """Return the document at a place, which is gone from then on."""
        self._free.take(place)
        return self._documents[place]

    def first(self) -> int:
        """Return the place of the largest document left, `count` for none."""
        return self._free.first(0, NO_LIMIT)

    def fitting(self, own: int, other: int, padding: int) -> int:
        """Return the place of the largest document left that needs no more than this, `count` for none."""
        place = self._free.first(bisect_left(self._below, -own), other)
        if self._padding is None:
            return place
        for _ in range(LOOKS):
            if place == self.count or self._padding[place] <= padding:
                return place
            place = self._free.first(place + 1, other)
        return self.count
