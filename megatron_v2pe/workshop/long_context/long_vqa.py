"""Long-VQA: ordinary questions about an image, asked where the image is one of many.

A sample takes one or several questions of an annotation, adds images of other samples until the length asked for is
reached, and asks about each by its number. Where a text is given, what is left of the length is filled with it, between
images and question. See `forms` for how images are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.workshop.long_context.budget import TokenBudget
from megatron_v2pe.workshop.long_context.built import TRAINING_LINES, Built
from megatron_v2pe.workshop.long_context.draws import Draws, TokenRange
from megatron_v2pe.workshop.long_context.filling import fill
from megatron_v2pe.workshop.long_context.forms import Form, ImagePlace, Request, number_line
from megatron_v2pe.workshop.long_context.image_pool import ImagePool, ImageQuestion
from megatron_v2pe.workshop.long_context.made_images import Shown
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER
from megatron_v2pe.workshop.long_context.text_source import TextSource

_SPARE_TEXT = 64
_SPARE_NUMBERS = 4


@dataclass(frozen=True)
class LongVqaSettings:
    """The settings of a Long-VQA data set."""

    seed: int
    target: TokenRange
    questions: int = 1
    """Images asked about in one sample, one turn each."""
    reuse_images: bool = False
    """Show an image again in a sample where the annotation has too few; never one that is asked about."""


@dataclass(frozen=True)
class _Draft:
    """A sample whose length is still to be settled."""

    questions: tuple[ImageQuestion, ...]
    shown: tuple[Shown, ...]
    places: tuple[ImagePlace, ...]
    """Where the image of each question stands."""

    def turns(self, text: str = "") -> list[tuple[str, str]]:
        """Return the conversation, with `text` between images and first question."""
        lines = [number_line(number) for number in range(1, len(self.shown) + 1)]
        head = "\n".join([*lines, text] if text else lines)
        turns: list[tuple[str, str]] = []
        for question, place in zip(self.questions, self.places, strict=True):
            asked = f"Question about {place.reference()}: {question.text}"
            turns += [("human", f"{head}\n{asked}" if head and not turns else asked), ("gpt", question.answer)]
        return turns


class LongVqaBuilder:
    """Makes Long-VQA samples."""

    def __init__(
        self,
        pools: Sequence[ImagePool],
        budget: TokenBudget,
        form: Form,
        settings: LongVqaSettings,
        text: TextSource | None,
    ) -> None:
        """Build from annotations.

        Args:
            pools: images and questions; a sample takes them from one of these.
            budget: counts tokens.
            form: how images are shown.
            settings: of the data set.
            text: fills what whole images leave; None: samples end up to an image's tokens below the target.

        Raises:
            ConfigError: no annotation has the questions one sample takes.
        """
        self.encoding, self._budget, self._form = budget.encoding, budget, form
        self._pools, self._settings, self._text = list(pools), settings, text
        self._groups = [len(pool) // settings.questions for pool in pools]
        if not sum(self._groups):
            found = ", ".join(f"{pool.describe()}: {len(pool)} {dict(pool.left_out)}" for pool in pools)
            raise ConfigError(
                f"a sample takes {settings.questions} questions about a single image each; found are {found}"
            )

    def build(self, number: int) -> Built:
        """Make a sample.

        Raises:
            DataError: target too small, too few images, text too short, or an image that cannot be read.
        """
        draws = Draws(self._settings.seed, number)
        target = self._settings.target.draw(draws)
        pool, questions = self._asked(number)
        images = tuple(dict.fromkeys(question.image for question in questions))
        folder = f"images/{number // 1000:04d}/{number:07d}"
        room = target - self._fixed(questions)
        request = Request(pool, draws, images, room, self._settings.reuse_images, folder)
        try:
            draft, text = self._to_length(request, questions, target)
        except DataError as error:
            raise DataError(f"sample {number}, {target} tokens: {error}") from error
        return self._finish(number, target, draft, text)

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples."""
        settings = self._settings
        form = {name: value for name, value in vars(self._form).items() if not name.startswith("_")}
        return {
            "kind": "long-vqa",
            "form": self._form.name,
            **form,
            "seed": settings.seed,
            "target_tokens": [settings.target.low, settings.target.high],
            "questions": settings.questions,
            "reuse_images": settings.reuse_images,
            "annotations": [[dataset.annotation for dataset in pool.datasets] for pool in self._pools],
            "text": self._text.files if self._text else [],
        }

    def left_out(self) -> dict[str, int]:
        """Return the lines no question was made of, and paragraphs not used, by cause."""
        counts: dict[str, int] = {}
        for pool in self._pools:
            for cause, count in sorted(pool.left_out.items()):
                counts[f"lines: {cause}"] = counts.get(f"lines: {cause}", 0) + count
        if self._text:
            counts["paragraphs: spell a special token or a placeholder"] = self._text.left_out
        return counts

    def _asked(self, number: int) -> tuple[ImagePool, list[ImageQuestion]]:
        """Return the questions of a sample: every group of questions once, then all in another order."""
        passed, index = divmod(number, sum(self._groups))
        draws = Draws(self._settings.seed, passed)
        group = draws.order(sum(self._groups), "groups")[index]
        which = 0
        while group >= self._groups[which]:
            group -= self._groups[which]
            which += 1
        pool, count = self._pools[which], self._settings.questions
        lines = draws.order(len(pool), "lines", which)[group * count : (group + 1) * count]
        return pool, [pool.question(line) for line in lines]

    def _fixed(self, questions: Sequence[ImageQuestion]) -> int:
        """Return the tokens of everything but images and their numbers, with a few to spare for large numbers."""
        draft = _Draft(tuple(questions), (), tuple(ImagePlace(1, 1, 1) for _ in questions))
        return self._budget.conversation(draft.turns(), []) + _SPARE_NUMBERS * len(questions)

    def _to_length(self, request: Request, questions: Sequence[ImageQuestion], target: int) -> tuple[_Draft, str]:
        """Return a draft of at most `target` tokens, and the text that brings it there."""
        units, fewest = self._form.units(request), self._form.fewest(request)
        while True:
            shown, places = self._form.arrange(units, request)
            place_of = dict(zip(request.asked, places, strict=True))
            draft = _Draft(tuple(questions), tuple(shown), tuple(place_of[question.image] for question in questions))
            tokens = self._budget.conversation(draft.turns(), self._tiles(shown))
            if tokens <= target:
                text = self._filling(draft, target, tokens, request.draws)
                if text is not None or len(units) == fewest:
                    return draft, text or ""
            elif len(units) == fewest:
                raise DataError(f"questions, answers and the images asked about alone take {tokens} tokens")
            units.pop()

    def _filling(self, draft: _Draft, target: int, tokens: int, draws: Draws) -> str | None:
        """Return text that brings a draft from `tokens` to `target`; None where that is too little for any."""
        missing = target - tokens
        if self._text is None or not missing:
            return ""
        source, found = list[str](), 0
        for _, paragraph in self._text.from_paragraph(draws.integer(len(self._text), "text")):
            source.append(paragraph)
            found += self._budget.text(paragraph) + 1
            if found > missing + _SPARE_TEXT:
                break
        if found < missing:
            raise DataError(f"{self._text.describe()}: {found} tokens of text, {missing} are needed")
        tiles = self._tiles(draft.shown)
        return fill(
            self._budget,
            "\n".join(source),
            target,
            lambda text: self._budget.conversation(draft.turns(text), tiles),
        )

    def _finish(self, number: int, target: int, draft: _Draft, text: str) -> Built:
        turns, tiles = draft.turns(text), self._tiles(draft.shown)
        tokens = self.encoding.length(turns, tiles)
        planned = self._budget.conversation(turns, tiles)
        assert tokens == planned, f"{tokens} tokens, planned were {planned}"
        starts = self._starts(turns, tiles)
        metadata = {
            "context_length": tokens,
            "target_tokens": target,
            "num_images": len(draft.shown),
            "num_tiles": sum(tiles),
            "form": self._form.name,
            "asked": [
                {**place.fields(), "source": question.source}
                for place, question in zip(draft.places, draft.questions, strict=True)
            ],
        }
        line = {
            "id": number,
            "image": [image.path for image in draft.shown],
            "conversations": [{"from": role, "value": value} for role, value in turns],
            "metadata": metadata,
        }
        depths = tuple(starts[place.image - 1] / tokens for place in draft.places)
        return Built({TRAINING_LINES: line}, draft.shown, self._form.name, target, tokens, sum(tiles), depths)

    def _tiles(self, shown: Sequence[Shown]) -> list[int]:
        return [self.encoding.tiles(image.size) for image in shown]

    def _starts(self, turns: list[tuple[str, str]], tiles: Sequence[int]) -> list[int]:
        """Return the tokens before each image."""
        system, question, *_ = self.encoding.messages(turns)
        starts, before = list[int](), 1 + self._budget.text(system)
        for text, count in zip(question.split(PLACEHOLDER), tiles, strict=False):
            before += self._budget.text(text)
            starts.append(before)
            before += self._budget.image(count)
        return starts
