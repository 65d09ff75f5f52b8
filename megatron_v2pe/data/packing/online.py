"""Best fit of documents into packs under two budgets, tokens and tiles. Documents are never cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that can be packed: it states its tokens and tiles."""

    @property
    def num_tokens(self) -> int:
        """Length in tokens."""
        ...

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        ...


Item = TypeVar("Item", bound=Sized)


@dataclass
class Pack(Generic[Item]):
    """The documents of one pack."""

    items: list[Item] = field(default_factory=list)
    tokens: int = 0
    tiles: int = 0

    def add(self, item: Item) -> None:
        """Put a document at the end."""
        self.items.append(item)
        self.tokens += item.num_tokens
        self.tiles += item.num_tiles


class BestFitPacker(Generic[Item]):
    """Keeps some packs open; each document goes where it leaves the least room."""

    def __init__(self, max_tokens: int, max_tiles: int, max_open: int) -> None:
        """Set the budgets of a pack and how many packs stay open."""
        self.max_tokens, self.max_tiles, self.max_open = max_tokens, max_tiles, max_open
        self.open: list[Pack[Item]] = []

    def add(self, item: Item) -> Pack[Item] | None:
        """Place a document; return a pack that is finished by it, if any.

        A pack is finished when its tokens are used up, or as the fullest when more than `max_open` are open.
        """
        assert item.num_tokens <= self.max_tokens and item.num_tiles <= self.max_tiles
        fitting = [pack for pack in self.open if self._fits(pack, item)]
        if fitting:
            pack = max(fitting, key=lambda pack: pack.tokens)
        else:
            pack = Pack()
            self.open.append(pack)
        pack.add(item)
        if pack.tokens == self.max_tokens:
            return self._finish(pack)
        return self._finish(max(self.open, key=self._fullness)) if len(self.open) > self.max_open else None

    def last(self) -> Pack[Item] | None:
        """Return the fullest open pack as finished, where nothing more will come; None where none is open."""
        return self._finish(max(self.open, key=self._fullness)) if self.open else None

    def _fits(self, pack: Pack[Item], item: Item) -> bool:
        return pack.tokens + item.num_tokens <= self.max_tokens and pack.tiles + item.num_tiles <= self.max_tiles

    def _fullness(self, pack: Pack[Item]) -> float:
        return max(pack.tokens / self.max_tokens, pack.tiles / self.max_tiles)

    def _finish(self, pack: Pack[Item]) -> Pack[Item]:
        self.open = [other for other in self.open if other is not pack]
        return pack
