"""A Long-MR document: haystack, needles and question together, as training and as MM-NIAH's evaluation read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_v2pe.workshop.long_context.budget import TokenBudget
from megatron_v2pe.workshop.long_context.haystack import Block, joined
from megatron_v2pe.workshop.long_context.made_images import Shown
from megatron_v2pe.workshop.long_context.needles import Needles
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER


@dataclass(frozen=True)
class LongDocument:
    """A haystack with its needles and its question."""

    blocks: tuple[Block, ...]
    closing: int | None
    """Index of the paragraph that is cut to length."""
    needles: Needles

    def closed(self, text: str) -> LongDocument:
        """Return the document with its closing paragraph; without text, without that paragraph."""
        assert self.closing is not None
        last = (Block(text, 0),) if text else ()
        return LongDocument((*self.blocks[: self.closing], *last, *self.blocks[self.closing + 1 :]), None, self.needles)

    def context(self) -> tuple[str, list[int]]:
        """Return the text before the question, which ends with a newline, and where in it each needle begins."""
        text, places = joined(self.blocks)
        return text + "\n", places

    def images(self) -> list[Shown]:
        """Return all images in the order in which the prompt shows them."""
        in_context = [block.image for block in self.blocks if block.image is not None]
        return [*in_context, *self.needles.question_images, *self.needles.choice_images]

    def turns(self) -> list[tuple[str, str]]:
        """Return the conversation training sees."""
        return [("human", self.context()[0] + self.needles.asking()), ("gpt", self.needles.answering())]

    def depths(self, budget: TokenBudget) -> list[float]:
        """Return for each needle the share of the context's tokens that come before it."""
        context, places = self.context()
        images = [budget.image(budget.encoding.tiles(image.size)) for image in self.images()]

        def tokens(text: str) -> int:
            parts = text.split(PLACEHOLDER)
            return sum(map(budget.text, parts)) + sum(images[: len(parts) - 1])

        total = tokens(context)
        return [round(tokens(context[:place]) / total, 6) for place in places]

    def meta(self, depths: Sequence[float], tokens: int, tiles: Sequence[int], tokens_per_tile: int) -> dict[str, Any]:
        """Return the field `meta` of MM-NIAH, and what it leaves out: numbers of tiles, fake needles, the task.

        Args:
            depths: of the needles.
            tokens: of the whole conversation as training encodes it, answer included.
            tiles: of each image of the prompt, choices included.
            tokens_per_tile: image tokens of a tile.
        """
        needles, of_images = self.needles, sum(tiles) * tokens_per_tile
        return {
            "placed_depth": depths[0] if len(depths) == 1 else list(depths),
            "context_length": tokens,
            "context_length_text": tokens - of_images,
            "context_length_image": of_images,
            "num_images": len(tiles),
            "num_tiles": sum(tiles),
            "needles": list(needles.recorded),
            "fake_needles": list(needles.fakes),
            "choices": list(needles.choices) or None,
            "choices_image_path": [image.path for image in needles.choice_images] or None,
            "category": needles.task,
        }

    def evaluation(self, number: int, meta: dict[str, Any]) -> dict[str, Any]:
        """Return the line of MM-NIAH; images of choices are named in `meta` alone, as there."""
        shown = self.images()[: -len(self.needles.choice_images) or None]
        return {
            "id": number,
            "images_list": [image.path for image in shown],
            "context": self.context()[0],
            "question": self.needles.question,
            "answer": self.needles.answer,
            "meta": meta,
        }

    def training(self, name: str, meta: dict[str, Any]) -> dict[str, Any]:
        """Return the line training reads; without an image, without that field."""
        images = [image.path for image in self.images()]
        turns = [{"from": role, "value": value} for role, value in self.turns()]
        return {"id": name, **({"image": images} if images else {}), "conversations": turns, "meta": meta}
