"""Long-MR: retrieval, counting and reasoning over needles in long documents of text and images.

Samples have the tasks of the published Long-MR mixture and the fields of MM-NIAH (arXiv 2406.07230), and are written
twice: as lines of MM-NIAH for evaluation, and as conversations for training. Both hold the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.workshop.long_context.budget import TokenBudget
from megatron_v2pe.workshop.long_context.built import TRAINING_LINES, Built
from megatron_v2pe.workshop.long_context.document import LongDocument
from megatron_v2pe.workshop.long_context.draws import Draws, TokenRange
from megatron_v2pe.workshop.long_context.filling import fill
from megatron_v2pe.workshop.long_context.haystack import (
    Block,
    choose_images,
    choose_paragraphs,
    host_blocks,
    insert,
    interleave,
    with_image,
)
from megatron_v2pe.workshop.long_context.image_needles import GRID, NeedleImages, image_needles
from megatron_v2pe.workshop.long_context.image_pool import ImagePool
from megatron_v2pe.workshop.long_context.made_images import Pasted, Shown
from megatron_v2pe.workshop.long_context.needles import IMAGE_TASKS, TASKS, Needles
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER
from megatron_v2pe.workshop.long_context.text_needles import text_needles
from megatron_v2pe.workshop.long_context.text_source import TextSource

_ATTEMPTS = 20
_LEAST_ROOM = 64
"""Tokens a haystack is to have at least."""
_LEAST_TEXT = 32
"""Tokens of it that are left to text, to fill the last of them."""
_SHORTER = 8
"""Tokens by which a haystack is made shorter where the last of them could not be filled."""


@dataclass(frozen=True)
class LongMrSettings:
    """The settings of a Long-MR data set."""

    seed: int
    target: TokenRange
    tasks: tuple[str, ...]
    """Tasks in turn, one a sample."""
    image_share: float = 0.5
    """Part of the haystack's tokens that images have."""
    depths: tuple[float, ...] = ()
    """Depths of needles, 0 to 1, in turn; none: drawn, anywhere in the document."""
    fakes: int = 3
    """Fake needles of `text_retrieval_fake`."""
    fakes_everywhere: int = 0
    """Fake needles of the other text tasks."""
    reuse_images: bool = False
    """Show an image again in a sample where there are too few."""

    def validate(self) -> None:
        """Check values.

        Raises:
            ConfigError: naming the option and the numbers.
        """
        if unknown := [task for task in self.tasks if task not in TASKS] or ([] if self.tasks else ["(none)"]):
            raise ConfigError(f"--tasks {' '.join(unknown)}: expected some of {', '.join(TASKS)}")
        if not 0 <= self.image_share <= 1:
            raise ConfigError(f"--image-share {self.image_share}: expected 0 to 1")
        if outside := [depth for depth in self.depths if not 0 <= depth <= 1]:
            raise ConfigError(f"--depths {' '.join(map(str, outside))}: expected 0 to 1")
        if min(self.fakes, self.fakes_everywhere) < 0:
            raise ConfigError(f"fake needles {self.fakes}, {self.fakes_everywhere}: expected 0 or more")


class LongMrBuilder:
    """Makes Long-MR samples."""

    def __init__(
        self,
        pool: ImagePool | None,
        budget: TokenBudget,
        settings: LongMrSettings,
        text: TextSource,
        needle_images: NeedleImages | None = None,
    ) -> None:
        """Build from background text and images.

        Args:
            pool: images; None where `image_share` is 0.
            budget: counts tokens.
            settings: of the data set.
            text: background text.
            needle_images: pictures for the image tasks.

        Raises:
            ConfigError: settings that cannot be, or an input that a task needs is missing.
        """
        settings.validate()
        self.encoding, self._budget, self._settings, self._text = budget.encoding, budget, settings, text
        self._pool, self._needle_images = pool if pool and pool.images else None, needle_images
        self._host_side = budget.encoding.tile_size // 2
        if settings.image_share > 0 and self._pool is None:
            raise ConfigError("no image in any annotation: give --meta-path or --annotation, or --image-share 0")
        if of_images := [task for task in settings.tasks if task in IMAGE_TASKS]:
            if needle_images is None:
                raise ConfigError(f"{', '.join(of_images)}: give --needle-images, a folder of pictures to hide")
            if settings.image_share == 0:
                raise ConfigError(f"{', '.join(of_images)}: --image-share 0 leaves no image to hide pictures in")

    def build(self, number: int) -> Built:
        """Make a sample.

        Raises:
            DataError: target too small, too few images, text too short, or an image that cannot be read.
        """
        draws = Draws(self._settings.seed, number)
        target = self._settings.target.draw(draws)
        tasks = self._settings.tasks
        task, turn = tasks[number % len(tasks)], number // len(tasks)
        try:
            for attempt in range(_ATTEMPTS):
                needles = self._needles(task, draws, attempt, number)
                document = self._document(needles, draws, target, turn)
                if document is not None:
                    return self._finish(number, turn, target, needles, document)
        except DataError as error:
            raise DataError(f"sample {number} ({task}), {target} tokens: {error}") from error
        raise DataError(f"sample {number} ({task}): the text held a word of {_ATTEMPTS} needles in turn")

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples."""
        settings = self._settings
        return {
            "kind": "long-mr",
            "seed": settings.seed,
            "target_tokens": [settings.target.low, settings.target.high],
            "tasks": list(settings.tasks),
            "image_share": settings.image_share,
            "depths": list(settings.depths),
            "fake_needles": settings.fakes,
            "fake_needles_everywhere": settings.fakes_everywhere,
            "reuse_images": settings.reuse_images,
            "annotations": [dataset.annotation for dataset in self._pool.datasets] if self._pool else [],
            "text": self._text.files,
        }

    def left_out(self) -> dict[str, int]:
        """Return the paragraphs that were not used."""
        return {"paragraphs: spell a special token or a placeholder": self._text.left_out}

    def _needles(self, task: str, draws: Draws, attempt: int, number: int) -> Needles:
        if task in IMAGE_TASKS:
            assert self._needle_images is not None
            return image_needles(task, draws, self._needle_images, self._folder(number))
        settings = self._settings
        fakes = settings.fakes if task == "text_retrieval_fake" else settings.fakes_everywhere
        return text_needles(task, draws, fakes, attempt)

    def _folder(self, number: int) -> str:
        return f"images/{number // 1000:04d}/{number:07d}"

    def _depths(self, draws: Draws, turn: int, places: int) -> list[float]:
        """Return ascending depths for the needles of a sample."""
        given = self._settings.depths
        if not given:
            return sorted(draws.fraction("depth", place) for place in range(places))
        if places == 1:
            return [given[turn % len(given)]]
        return sorted(draws.choose(given, "depth", place) for place in range(places))

    def _document(self, needles: Needles, draws: Draws, target: int, turn: int) -> LongDocument | None:
        """Return a document of exactly `target` tokens; None where the haystack holds a word of the needles."""
        fixed = self._fixed(needles)
        if target - fixed < _LEAST_ROOM:
            raise DataError(
                f"question, answer and needles alone take {fixed} tokens, the haystack needs {_LEAST_ROOM} more"
            )
        room, images = target - fixed, list[Shown]()
        room_for_images = min(int(self._settings.image_share * room), room - _LEAST_TEXT)
        if self._pool is not None and (room_for_images or needles.copies):
            images = choose_images(
                self._pool,
                self._budget,
                draws,
                room_for_images,
                but=needles.sources,
                hosts=len(needles.copies),
                host_side=self._host_side,
                reuse=self._settings.reuse_images,
            )
        found = self._at_length(needles, images, draws, target, turn, room)
        haystack = "\n".join(block.text for block in found.blocks if not block.statement).lower()
        return None if any(word.lower() in haystack for word in needles.unique) else found

    def _at_length(
        self, needles: Needles, images: Sequence[Shown], draws: Draws, target: int, turn: int, room: int
    ) -> LongDocument:
        """Return a document of exactly `target` tokens, of which about `room` are the haystack's.

        Paragraphs are counted one by one first; where they come to another number of tokens together, they are chosen
        anew with that known.
        """
        room -= sum(self._cost(image) for image in images)
        for _ in range(_ATTEMPTS):
            background = choose_paragraphs(self._text, self._budget, draws, room)
            blocks = interleave(background.blocks, images, self._budget, draws)
            blocks.append(Block("", background.closing_tokens))
            blocks = self._with_needles(blocks, needles, draws, turn)
            drafted = LongDocument(tuple(blocks), next(i for i in range(len(blocks)) if not blocks[i].text), needles)
            tiles = self._tiles(drafted.images())

            def count(text: str, drafted: LongDocument = drafted, tiles: Sequence[int] = tiles) -> int:
                return self._budget.conversation(drafted.closed(text).turns(), tiles)

            text = fill(self._budget, background.closing, target, count)
            if text is not None:
                return drafted.closed(text)
            room += target - count("") - background.closing_tokens or -_SHORTER
        raise DataError(f"{self._text.describe()}: no words in it fill the document to the last token")

    def _with_needles(self, blocks: list[Block], needles: Needles, draws: Draws, turn: int) -> list[Block]:
        """Hide the needles: pasted into images, or as blocks of their own."""
        depths = self._depths(draws, turn, needles.places)
        if needles.pasted is not None:
            for number, index in enumerate(host_blocks(blocks, depths, self._host_side)):
                base = blocks[index].image
                assert base is not None
                cells = draws.order(GRID * GRID, "cells", number)[: needles.copies[number]]
                recipe = Pasted(base.path, base.size, needles.pasted, tuple(sorted(cells)), GRID)
                path = f"{self._folder(draws.sample)}_host{number}.jpg"
                blocks[index] = with_image(blocks[index], Shown(path, base.size, recipe), number)
            return blocks
        own = [Block(text, self._budget.text(text) + 1, needle=i) for i, text in enumerate(needles.statements)]
        own += [Block(PLACEHOLDER, self._cost(image), image, needle=i) for i, image in enumerate(needles.inserted)]
        hidden = list(zip(depths, own, strict=True))
        for i, text in enumerate(needles.fakes):
            hidden.append((draws.fraction("fake", i), Block(text, self._budget.text(text) + 1, fake=True)))
        return insert(blocks, sorted(hidden, key=lambda item: item[0]))

    def _fixed(self, needles: Needles) -> int:
        """Return the tokens of a document without its haystack."""
        blocks = [Block(text, 0, needle=0) for text in needles.statements]
        blocks += [Block(PLACEHOLDER, 0, image, needle=0) for image in needles.inserted]
        blocks += [Block(text, 0, fake=True) for text in needles.fakes]
        document = LongDocument(tuple(blocks), None, needles)
        return self._budget.conversation(document.turns(), self._tiles(document.images()))

    def _finish(self, number: int, turn: int, target: int, needles: Needles, document: LongDocument) -> Built:
        images = document.images()
        tiles = self._tiles(images)
        tokens = self.encoding.length(document.turns(), tiles)
        assert tokens == target, f"{tokens} tokens, planned were {target}"
        depths = document.depths(self._budget)
        meta = document.meta(depths, tokens, tiles, self.encoding.tokens_per_tile)
        lines = {
            TRAINING_LINES: document.training(f"{needles.task}_{turn}", meta),
            f"mm_niah/{needles.task}.jsonl": document.evaluation(turn, meta),
        }
        return Built(lines, tuple(images), needles.task, target, tokens, sum(tiles), tuple(depths))

    def _tiles(self, images: Sequence[Shown]) -> list[int]:
        return [self.encoding.tiles(image.size) for image in images]

    def _cost(self, image: Shown) -> int:
        return self._budget.image(self.encoding.tiles(image.size)) + self._budget.text("\n")
