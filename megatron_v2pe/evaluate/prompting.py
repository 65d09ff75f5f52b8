"""How a benchmark's question becomes what the model reads: its text, and its images tiled as the benchmark says.

An image is a file or a frame of a video; some benchmarks have it enlarged before it is cut into tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from PIL import Image

from megatron_v2pe.data.image_files import image_size
from megatron_v2pe.data.image_operations import NORMALISATION, ImageFacts, ImageOperation, Operations, Stage
from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Picture
from megatron_v2pe.data.video import read_frames
from megatron_v2pe.evaluate.answers import turns_text
from megatron_v2pe.evaluate.benchmark import Benchmark, ImageRef, Question
from megatron_v2pe.generate.prompt import Prompt, assemble
from megatron_v2pe.generate.tiles import ImageTiles
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.settings import StridePolicy


@dataclass(frozen=True)
class Prompter:
    """Settings under which questions become prompts."""

    model: InternVLConfig
    tokenizer: Tokenizer
    policy: StridePolicy
    tiling: TilingOptions
    """The checkpoint's tiling; a benchmark's own settings come before it, those of an image before both."""
    max_num: int | None = None
    """Most tiles of an image the user asked for, whatever checkpoint and benchmark say."""

    def prompt(self, benchmark: Benchmark, question: Question) -> Prompt:
        """Encode a question; of its images no more than the headers are read.

        Raises:
            DataError: an image is missing or none, or placeholders and images differ in number.
        """
        images = question.images
        pictures = [picture_of(reference, self._options(benchmark, reference, len(images))) for reference in images]
        counts = [picture.num_tiles for picture in pictures]
        if question.joined and counts:
            counts = [sum(counts)]
        mean, _ = NORMALISATION[self.model.normalize_type]
        tiles = ImageTiles(pictures, self.tiling.tile_size, mean)
        return assemble(question.turns, counts, tiles, self.model, self.tokenizer, self.policy)

    def _options(self, benchmark: Benchmark, reference: ImageRef, images: int = 1) -> TilingOptions:
        options = self.tiling.shared_among(images)
        most = self.max_num or benchmark.max_tiles or options.max_num
        if reference.max_tiles is not None:
            most = min(reference.max_tiles, self.max_num or reference.max_tiles)
        return replace(
            options,
            dynamic=options.dynamic and benchmark.dynamic_tiling,
            max_num=most,
            min_num=min(options.min_num, most),
            thumbnail=options.thumbnail if benchmark.thumbnail is None else benchmark.thumbnail,
        )


def estimated_size(question: Question, most_tiles: int, new_tokens: int, tokens_per_tile: int) -> tuple[int, int, int]:
    """Return prompt tokens, tiles and new tokens a question will take, guessed without opening its images."""
    characters = sum(len(text) for _, text in question.turns)
    tiles = sum(1 if image.frame is not None else image.max_tiles or most_tiles for image in question.images)
    return characters // 3 + tokens_per_tile * tiles, tiles, new_tokens


def prompt_text(turns: Sequence[tuple[str, str]], prompt: Prompt) -> str:
    """Return a prompt as a reader wants to see it: each turn, and at each image its number of tiles."""
    parts = turns_text(turns).split("<image>")
    marks = [f"<image of {tiles} tiles>" for tiles in prompt.num_tiles]
    marks += ["<image>"] * (len(parts) - 1 - len(marks))
    return "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=False))


@dataclass(frozen=True)
class Enlarge(ImageOperation):
    """Multiply the sides of an image before it is cut, bilinear, as a benchmark asks for."""

    name: ClassVar[str] = "enlarge"
    stage: ClassVar[Stage] = "rgb"
    resizes: ClassVar[bool] = True
    times: int = 2

    def size_after(self, size: tuple[int, int], facts: ImageFacts) -> tuple[int, int]:
        """Return width and height, multiplied."""
        return size[0] * self.times, size[1] * self.times

    def apply(self, image: Image.Image, facts: ImageFacts) -> Image.Image:
        """Return the enlarged image."""
        return image.resize((image.width * self.times, image.height * self.times), Image.Resampling.BILINEAR)


def picture_of(reference: ImageRef, options: TilingOptions) -> Picture:
    """Decide an image's tiles; no more than its header is read, and not even that where it is one tile anyway.

    Args:
        reference: the image; frames of videos are not enlarged.
        options: how it becomes tiles.

    Raises:
        DataError: a file is missing or not an image; names it.
    """
    assert reference.frame is None or reference.enlarge == 1
    enlarged = (Enlarge(reference.enlarge),) if reference.enlarge != 1 else ()
    options = replace(options, operations=(*options.operations, *enlarged))
    grid = options.grid(*size_of(reference, options.operations)) if options.dynamic else None
    return Picture(
        path=reference.path,
        grid=grid,
        thumbnail=options.thumbnail and grid is not None and grid != (1, 1),
        frame=reference.frame,
        operations=options.operations_for(grid),
    )


def size_of(reference: ImageRef, operations: Operations = ()) -> tuple[int, int]:
    """Return width and height of an image as it is cut, after these operations.

    Raises:
        DataError: a file is missing or damaged; names it.
    """
    if reference.frame is not None:
        return read_frames(reference.path, [reference.frame])[0].size
    return image_size(reference.path, operations)
