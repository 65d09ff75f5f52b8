"""A question about images as what the model reads: token ids, positions and tiles, encoded as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.image_operations import NORMALISATION, operations_of
from megatron_v2pe.data.image_plan import TilingOptions, plan_images
from megatron_v2pe.data.tokenize import compact_conversation, expand, image_starts, with_images
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.generate.tiles import ImageTiles
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.position_ids import Ticks, continue_positions, position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy


@dataclass(frozen=True)
class Prompt:
    """One conversation up to the opened answer."""

    input_ids: Tensor
    """int64 [L]: token ids."""
    position_ticks: Ticks
    """Positions of the L tokens."""
    tiles: Tensor | ImageTiles
    """T of them, uint8 [H, W, 3] each; where tiles are normalised already, [3, H, W] of a floating type."""
    num_tiles: tuple[int, ...]
    """Tiles of each image; T in all."""
    answered: int = 0
    """Tokens at its end that are the beginning of the answer: an image token that was chosen there is of no image."""

    def continued(self, tokens: Sequence[int]) -> Prompt:
        """Return the prompt with the beginning of its answer as part of it."""
        if not tokens:
            return self
        ticks = self.position_ticks
        more = continue_positions(ticks.last, len(tokens), ticks.denominator)
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, self.input_ids.new_tensor(tokens)]),
            position_ticks=ticks.mapped(lambda values: torch.cat([values, more.to(values)])),
            answered=self.answered + len(tokens),
        )


def checkpoint_tiling(model: InternVLConfig, max_num: int | None = None) -> TilingOptions:
    """Return how a checkpoint was trained to have images tiled, with at most `max_num` tiles each if given."""
    shared = model.dynamic_max_patch and max_num is None  # who names a number means that of each image
    max_num = model.max_dynamic_patch if max_num is None else max_num
    return TilingOptions(
        tile_size=model.tile_size,
        dynamic=model.dynamic_image_size,
        min_num=min(model.min_dynamic_patch, max_num),
        max_num=max_num,
        share_max_num=shared,
        thumbnail=model.use_thumbnail,
        operations=operations_of(pad_to_square=model.pad2square),
    )


def asked_with(model: InternVLConfig) -> dict[str, str | int | float | None]:
    """Return what of a checkpoint's own settings decides over prompts and tiles, by name."""
    least, most = model.min_dynamic_patch, model.max_dynamic_patch
    tiles = f"{least} to {most}" if model.dynamic_image_size else "1"
    marks = {
        "thumbnail": model.use_thumbnail and model.dynamic_image_size,
        "shared": model.dynamic_max_patch and model.dynamic_image_size,
        "padded to a square": model.pad2square and not model.dynamic_image_size,
    }
    return {
        "template": model.template,
        "tiles": ", ".join([tiles, *(name for name, holds in marks.items() if holds)]),
        "normalize_type": model.normalize_type,
    }


def encode_prompt(
    turns: Sequence[tuple[str, str]],
    images: Sequence[str],
    model: InternVLConfig,
    tokenizer: Tokenizer,
    policy: StridePolicy,
    tiling: TilingOptions,
) -> Prompt:
    """Encode a conversation whose last turn is a question; of its images no more than the headers are read.

    Args:
        turns: (role, text), roles `human` and `gpt` in turn, see `Template.render`. Images without placeholders go
            before the first question, see `data.tokenize`.
        images: paths, in the order of the placeholders.
        model: the checkpoint's configuration.
        tokenizer: the checkpoint's tokenizer.
        policy: positions of image tokens; a fixed stride or `default`.
        tiling: how images become tiles.

    Raises:
        DataError: an image is missing or none, or placeholders and images differ in number.
    """
    pictures = plan_images(images, tiling)
    turns = with_images(turns, len(images))
    mean, _ = NORMALISATION[model.normalize_type]
    tiles = ImageTiles(pictures, tiling.tile_size, mean)
    return assemble(turns, [picture.num_tiles for picture in pictures], tiles, model, tokenizer, policy)


def assemble(
    turns: Sequence[tuple[str, str]],
    num_tiles: Sequence[int],
    tiles: Tensor | ImageTiles,
    model: InternVLConfig,
    tokenizer: Tokenizer,
    policy: StridePolicy,
) -> Prompt:
    """Put a conversation and its tiles together; images stand where the text's placeholders are.

    Args:
        turns: with one placeholder for each image.
        num_tiles: of each image.
        tiles: of all images.
        model: the checkpoint's configuration.
        tokenizer: the checkpoint's tokenizer.
        policy: positions of image tokens.

    Raises:
        DataError: placeholders and images differ in number.
    """
    per_tile = model.tokens_per_tile
    text = compact_conversation(tokenizer, get_template(model.template), turns, len(num_tiles), prompt=True)
    ids, _ = expand(text, num_tiles, per_tile)
    images = list(zip(image_starts(text, num_tiles, per_tile), num_tiles, strict=True))
    strides = policy.draw(len(images), per_tile, epoch=0, sample=0)
    ticks = position_ticks(len(ids), images, strides, per_tile, policy.denominator(per_tile))
    return Prompt(ids, ticks, tiles, tuple(num_tiles))
