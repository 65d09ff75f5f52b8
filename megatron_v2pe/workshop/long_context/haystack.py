"""Haystacks: paragraphs of a text with images among them, and needles put in at given depths.

A haystack is a row of blocks, a paragraph or an image each. Paragraphs follow one another as in their file, from a
place drawn for the sample; images are spread evenly, each somewhere within its share of the text. The last paragraph is
`closing`: it is cut so that the whole has exactly its tokens, and so is chosen last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from megatron_v2pe.errors import DataError
from megatron_v2pe.workshop.long_context.budget import TokenBudget
from megatron_v2pe.workshop.long_context.draws import Draws
from megatron_v2pe.workshop.long_context.image_pool import ImagePool
from megatron_v2pe.workshop.long_context.made_images import Shown
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER
from megatron_v2pe.workshop.long_context.text_source import TextSource

_LEAST_CLOSING = 16
"""Tokens the closing paragraph is to have at least, so that there is something to cut."""
_SPARE = 256
_LOOKED_AT = 32
_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


@dataclass(frozen=True)
class Block:
    """A paragraph, an image, or a needle."""

    text: str
    """The placeholder where it is an image."""
    cost: int
    """Its tokens, with the newline before it."""
    image: Shown | None = None
    needle: int | None = None
    """Number of the needle it is or holds, in the order of the document."""
    fake: bool = False

    @property
    def statement(self) -> bool:
        """Whether it is a sentence that was put in."""
        return self.image is None and (self.needle is not None or self.fake)


@dataclass(frozen=True)
class Background:
    """A haystack without needles."""

    blocks: tuple[Block, ...]
    closing: str
    """Text the closing paragraph is cut from."""
    closing_tokens: int
    """About how many tokens it is to have."""


def choose_images(
    pool: ImagePool,
    budget: TokenBudget,
    draws: Draws,
    room: int,
    *,
    but: Collection[str],
    hosts: int,
    host_side: int,
    reuse: bool,
) -> list[Shown]:
    """Return images that fill `room` tokens as far as whole images do, in a drawn order, `hosts` of them large enough.

    Args:
        pool: images of an annotation.
        budget: counts tokens.
        draws: of the sample.
        room: tokens for images.
        but: images that are not to be shown.
        hosts: images that needles are to be pasted into.
        host_side: fewest pixels of their sides.
        reuse: show images again where there are too few.

    Raises:
        DataError: too few images, too few large ones, or no room for the hosts.
    """
    chosen: list[Shown] = []
    taken = set(but)
    left = room
    for path in pool.shuffled(draws, set(but), False) if hosts else ():
        if len(chosen) == hosts:
            break
        size = pool.size(path)
        if min(size) >= host_side and (cost := _image_cost(budget, size)) <= left:
            chosen.append(Shown(path, size))
            taken.add(path)
            left -= cost
    if len(chosen) < hosts:
        raise DataError(
            f"{pool.describe()}: needles are pasted into {hosts} images of {host_side} pixels or more; "
            f"{len(chosen)} of {len(pool.images)} images are so large and fit into {room} tokens for images"
        )
    missed = 0
    for path in pool.shuffled(draws, taken, reuse):
        size = pool.size(path)
        cost = _image_cost(budget, size)
        if cost <= left:
            chosen.append(Shown(path, size))
            left -= cost
        else:
            missed += 1
        if missed >= _LOOKED_AT:
            break
    if not missed and chosen and left > max(_image_cost(budget, shown.size) for shown in chosen):
        raise DataError(
            f"{pool.describe()}: its {len(pool.images)} images give {room - left} of {room} tokens; lower the "
            "target or --image-share, add images or allow --reuse-images"
        )
    return [chosen[i] for i in draws.order(len(chosen), "image order")]


def _image_cost(budget: TokenBudget, size: tuple[int, int]) -> int:
    return budget.image(budget.encoding.tiles(size)) + budget.text("\n")


def choose_paragraphs(text: TextSource, budget: TokenBudget, draws: Draws, room: int) -> Background:
    """Return paragraphs that fill `room` tokens, and a closing one to be cut.

    Raises:
        DataError: the text is too short; names both numbers.
    """
    blocks: list[Block] = []
    rest, used = "", 0
    paragraphs = text.from_paragraph(draws.integer(len(text), "text"))
    for _, paragraph in paragraphs:
        cost = budget.line(paragraph)
        if used + cost > room - _LEAST_CLOSING:
            rest = paragraph
            break
        blocks.append(Block(paragraph, cost))
        used += cost
    rest = _long_enough(rest, paragraphs, budget, room - used + _SPARE)
    if budget.text(rest) < room - used:
        raise DataError(
            f"{text.describe()}: {used + budget.text(rest)} tokens of text, {room} are needed; add text, lower the "
            "target or raise --image-share"
        )
    return Background(tuple(blocks), rest, room - used)


def _long_enough(rest: str, paragraphs: Iterator[tuple[int, str]], budget: TokenBudget, tokens: int) -> str:
    while budget.text(rest) < tokens:
        following = next(paragraphs, None)
        if following is None:
            break
        rest = f"{rest} {following[1]}".strip()
    return rest


def interleave(paragraphs: Sequence[Block], images: Sequence[Shown], budget: TokenBudget, draws: Draws) -> list[Block]:
    """Spread images over paragraphs: the k-th somewhere within the k-th of as many equal shares of the text."""
    before: dict[int, list[Block]] = {}
    for number, image in enumerate(images):
        place = (number + draws.fraction("place", number)) / len(images)
        block = Block(PLACEHOLDER, _image_cost(budget, image.size), image)
        before.setdefault(round(place * len(paragraphs)), []).append(block)
    blocks: list[Block] = []
    for index in range(len(paragraphs) + 1):
        blocks += before.get(index, [])
        blocks += paragraphs[index : index + 1]
    return blocks


def insert(blocks: Sequence[Block], needles: Sequence[tuple[float, Block]]) -> list[Block]:
    """Put each needle between the two blocks nearest to its depth; blocks and needles keep their order.

    Args:
        blocks: the haystack.
        needles: depth, the share of the tokens that is to come before, and block; depths ascending.
    """
    starts = [0, *accumulate(block.cost for block in blocks)]
    result: list[Block] = []
    done = 0
    for depth, needle in needles:
        place = max(done, nearest(starts, depth * starts[-1]))
        result += [*blocks[done:place], needle]
        done = place
    return [*result, *blocks[done:]]


def host_blocks(blocks: Sequence[Block], depths: Sequence[float], smallest: int) -> list[int]:
    """Return for each depth, ascending, an image block of its own near to it that needles can be pasted into.

    Args:
        blocks: the haystack.
        depths: shares of the tokens that are to come before.
        smallest: fewest pixels of the sides of such an image.

    Returns:
        Indices of blocks, ascending.
    """
    starts = [0, *accumulate(block.cost for block in blocks)]
    large = [i for i, block in enumerate(blocks) if block.image is not None and min(block.image.size) >= smallest]
    assert len(large) >= len(depths), "choose_images counted the hosts"
    chosen: list[int] = []
    for number, depth in enumerate(depths):
        first = large.index(chosen[-1]) + 1 if chosen else 0
        last = len(large) - (len(depths) - number - 1)  # leave one for each depth that follows
        chosen.append(min(large[first:last], key=lambda i: abs(starts[i] - depth * starts[-1])))
    return chosen


def nearest(values: Sequence[int], wanted: float) -> int:
    """Return the index of the value of an ascending sequence that is nearest to `wanted`."""
    index = bisect_left(values, wanted)
    if index == len(values) or (index and wanted - values[index - 1] <= values[index] - wanted):
        return index - 1
    return index


def joined(blocks: Sequence[Block]) -> tuple[str, list[int]]:
    """Return the text of blocks, and where in it each needle begins; a statement follows a sentence on its line."""
    parts: list[str] = []
    places: list[int] = []
    length, before = 0, None
    for block in blocks:
        if before is not None:
            on_line = block.statement and before.text.endswith(_SENTENCE_ENDS)
            parts.append(" " if on_line else "\n")
            length += 1
        if block.needle is not None:
            places.append(length)
        parts.append(block.text)
        length += len(block.text)
        before = block
    return "".join(parts), places


def with_image(block: Block, image: Shown, needle: int) -> Block:
    """Return an image block that shows another image, which holds a needle."""
    return replace(block, image=image, needle=needle)
