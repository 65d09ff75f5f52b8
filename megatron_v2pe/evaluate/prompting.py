"""A benchmark's question as what the model reads: its images tiled as the benchmark says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.data.image_transform import NORMALISATION
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.evaluate.benchmark import Benchmark, ImageRef, Question
from megatron_v2pe.evaluate.images import open_enlarged, picture_of
from megatron_v2pe.evaluate.words import told
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
    """Of the checkpoint; a benchmark's own settings come before it, those of an image before both."""
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
        tiles = ImageTiles(pictures, self.tiling.tile_size, mean, open_enlarged)
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


def estimated_cost(question: Question, most_tiles: int, new_tokens: int, tokens_per_tile: int) -> tuple[int, int, int]:
    """Return prompt tokens, tiles and new tokens a question will take, guessed without opening its images."""
    characters = sum(len(text) for _, text in question.turns)
    tiles = sum(1 if image.frame is not None else image.max_tiles or most_tiles for image in question.images)
    return characters // 3 + tokens_per_tile * tiles, tiles, new_tokens


def shown(turns: Sequence[tuple[str, str]], prompt: Prompt) -> str:
    """Return a prompt as a reader wants to see it: each turn, and at each image its number of tiles."""
    parts = told(turns).split("<image>")
    marks = [f"<image of {tiles} tiles>" for tiles in prompt.num_tiles]
    marks += ["<image>"] * (len(parts) - 1 - len(marks))
    return "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=False))
