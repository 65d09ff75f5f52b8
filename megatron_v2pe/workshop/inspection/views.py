"""What a pack holds, token by token: runs of tokens with their positions, labels and images, as a model sees them.

A view is made of plain numbers and text, so that `dataclasses.asdict` of one is JSON. Everything in it is read off the
documents' own tensors; nothing is worked out from the annotation again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby

import numpy as np

from megatron_v2pe.data.batch import loss_weights
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import Template
from megatron_v2pe.data.image_operations import names_of
from megatron_v2pe.data.tokenize import PLACEHOLDER
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import IGNORE_INDEX, Picture, TrainingDocument


@dataclass(frozen=True)
class ImageView:
    """One image of a document."""

    number: int
    """Number of the image in the document, from 1."""
    path: str
    frame: int | None
    """Number of the frame in a video file or animation."""
    grid: tuple[int, int] | None
    """Columns and rows; None: the whole image as one tile."""
    thumbnail: bool
    augment: bool
    """Whether its tiles go through JPEG."""
    tiles: int
    tokens: int
    start: int
    """Index of its first token in the document."""
    stride: str
    """Positions a tile spans: a whole number or a fraction, `64`, `1/2`."""
    first_ticks: int
    """Position of its first token, times the denominator."""
    last_ticks: int


@dataclass(frozen=True)
class RunView:
    """Consecutive tokens of a document: of one message, all learned or none; or an image with its two marks."""

    start: int
    """Index of the first token in the document."""
    end: int
    """Index after the last."""
    first_ticks: int
    """Position of the first token, times the denominator."""
    last_ticks: int
    learned: bool
    """Whether the model learns to write these tokens."""
    message: int
    """Message of the conversation, from 1: the system's; 0: before it."""
    text: str
    """Special tokens by their names; nothing of an image."""
    image: ImageView | None = None


@dataclass(frozen=True)
class DocumentView:
    """One document of a pack."""

    dataset: str
    file: str
    """The annotation file."""
    line: int
    """Line of it, from 1."""
    epoch: int
    number: int
    """Place of the sample in the epoch, which its draws are keyed by."""
    tokens: int
    tiles: int
    learned: int
    """Tokens the model learns to write."""
    weight: float
    """Weight of each of those tokens in the loss."""
    last_ticks: int
    """Largest position reached, times the denominator."""
    exchanges: tuple[tuple[str, str], ...]
    """Question and learned answer of each message with one, without what the template puts around them."""
    runs: tuple[RunView, ...]

    @property
    def images(self) -> tuple[ImageView, ...]:
        """Return its images in order."""
        return tuple(run.image for run in self.runs if run.image is not None)


@dataclass(frozen=True)
class PackTotals:
    """A pack as a whole."""

    documents: int
    tokens: int
    max_tokens: int
    """What `data.max_packed_tokens` allows."""
    tiles: int
    max_tiles: int
    """What `data.num_images_expected` allows."""
    learned: int
    attention_cost: int
    """Sum of the squares of the documents' lengths."""
    padded_lengths: tuple[int, ...]
    """Tokens of each document under the parallel layout; a document of padding comes last where one is needed."""
    padding: int
    """Tokens the parallel layout adds."""


@dataclass(frozen=True)
class PackView:
    """A pack, or a single sample."""

    title: str
    denominator: int
    """Positions are ticks over this number."""
    documents: tuple[DocumentView, ...]
    left_out: tuple[str, ...]
    """Samples that cannot be used: source and reason, or number and kind of reason."""
    totals: PackTotals


@dataclass(frozen=True)
class Viewer:
    """Makes views of packs and documents, with the settings and the tokenizer that this needs."""

    config: DataConfig
    tokenizer: Tokenizer
    template: Template
    tokens_per_tile: int
    denominator: int
    """Denominator of the position lattice."""

    def pack(
        self, title: str, documents: Sequence[TrainingDocument], left_out: Sequence[str], padded_lengths: Sequence[int]
    ) -> PackView:
        """Describe a pack.

        Args:
            title: what it is.
            documents: in order.
            left_out: what to say about samples that are left out.
            padded_lengths: tokens of each document under the parallel layout.
        """
        views = tuple(self.document(document) for document in documents)
        tokens = sum(view.tokens for view in views)
        totals = PackTotals(
            documents=len(views),
            tokens=tokens,
            max_tokens=self.config.max_packed_tokens,
            tiles=sum(view.tiles for view in views),
            max_tiles=self.config.num_images_expected,
            learned=sum(view.learned for view in views),
            attention_cost=sum(view.tokens**2 for view in views),
            padded_lengths=tuple(padded_lengths),
            padding=sum(padded_lengths) - tokens,
        )
        return PackView(title, self.denominator, views, tuple(left_out), totals)

    def document(self, document: TrainingDocument) -> DocumentView:
        """Describe a document, as `DocumentEncoder.draw` gives it."""
        runs = tuple(self._runs(document))
        weights = loss_weights(document.labels, self.config.loss_reduction)
        _, epoch, number = document.key
        return DocumentView(
            dataset=document.source.dataset,
            file=document.source.file,
            line=document.source.line,
            epoch=epoch,
            number=number,
            tokens=document.num_tokens,
            tiles=document.num_tiles,
            learned=int((document.labels != IGNORE_INDEX).sum()),
            weight=float(weights.max()),
            last_ticks=int(document.position_ticks.values.max()),
            exchanges=tuple(self._exchanges(runs)),
            runs=runs,
        )

    def _runs(self, document: TrainingDocument) -> Iterator[RunView]:
        ids, learned = document.input_ids.numpy(), (document.labels != IGNORE_INDEX).numpy()
        ticks = document.position_ticks.values
        openings = np.isin(ids, self._openings)
        message = np.cumsum(openings)
        images = {
            start - 1: (number, start, picture)
            for number, ((start, _), picture) in enumerate(zip(document.images, document.pictures, strict=True), 1)
        }
        borders = {0, len(ids), *(np.flatnonzero(np.diff(learned)) + 1).tolist(), *np.flatnonzero(openings).tolist()}
        borders.update(*((begin, self._after(image)) for begin, image in images.items()))
        ordered = sorted(borders)
        for start, end in zip(ordered[:-1], ordered[1:], strict=True):
            image = images.get(start)
            yield RunView(
                start=start,
                end=end,
                first_ticks=int(ticks[start]),
                last_ticks=int(ticks[end - 1]),
                learned=bool(learned[start]),
                message=int(message[start]),
                text="" if image else self._text_of(ids[start:end].tolist()),
                image=self._image(document, *image) if image else None,
            )

    def _after(self, image: tuple[int, int, Picture]) -> int:
        """Return the index behind an image's closing mark."""
        _, start, picture = image
        return start + picture.num_tiles * self.tokens_per_tile + 1

    def _image(self, document: TrainingDocument, number: int, start: int, picture: Picture) -> ImageView:
        ticks, tokens = document.position_ticks.values, picture.num_tiles * self.tokens_per_tile
        step = int(ticks[start] - ticks[start - 1])
        return ImageView(
            number=number,
            path=picture.path,
            frame=picture.frame,
            grid=picture.grid,
            thumbnail=picture.thumbnail,
            augment="jpeg" in names_of(picture.operations),
            tiles=picture.num_tiles,
            tokens=tokens,
            start=start,
            stride=str(Fraction(step * self.tokens_per_tile, self.denominator)),
            first_ticks=int(ticks[start]),
            last_ticks=int(ticks[start + tokens - 1]),
        )

    @cached_property
    def _openings(self) -> list[int]:
        """Return the special tokens that a message begins with."""
        begins = [self.tokenizer.encode(text)[0] for text in (self.template.user, self.template.assistant)]
        return [number for number in begins if number in self._names]

    @cached_property
    def _names(self) -> dict[int, str]:
        return {number: name for name, number in self.tokenizer.special.items()}

    def _text_of(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with special tokens by their names."""
        names = self._names
        parts = [
            "".join(names[number] for number in group) if special else self.tokenizer.decode(group)
            for special, group in ((key, list(part)) for key, part in groupby(ids, key=names.__contains__))
        ]
        return "".join(parts)

    def _exchanges(self, runs: Sequence[RunView]) -> Iterator[tuple[str, str]]:
        texts = {
            message: "".join(PLACEHOLDER if run.image else run.text for run in part)
            for message, part in groupby(runs, key=lambda run: run.message)
        }
        for message in sorted({run.message for run in runs if run.learned}):
            answer = texts[message].removeprefix(self.template.assistant)
            question = texts.get(message - 1, "").removeprefix(self.template.user)
            ends = self.template.end + self.template.separator
            yield question.removesuffix(ends), answer.removesuffix(ends)


def as_position(ticks: int, denominator: int) -> str:
    """Return a position exactly: `17`, `17.25`, `17 255/256`."""
    whole, rest = divmod(ticks, denominator)
    fraction = Fraction(rest, denominator)
    if not fraction:
        return str(whole)
    if 1000 % fraction.denominator == 0:
        return f"{whole + float(fraction):.3f}".rstrip("0")
    return f"{whole} {fraction}"


def as_tiling(image: ImageView) -> str:
    """Return how an image is cut: `3x2+thumb`, `whole`."""
    if image.grid is None:
        return "whole"
    return f"{image.grid[0]}x{image.grid[1]}" + ("+thumb" if image.thumbnail else "")
