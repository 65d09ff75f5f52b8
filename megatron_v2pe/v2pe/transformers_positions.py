"""V2PE positions for the language models of `transformers`, which take `position_ids` and know no strides.

Their rotary embedding multiplies `position_ids` by frequencies in float32, and whole numbers are not asked for: a
native export of a model that was trained with V2PE gives this project's logits when it is given these positions.
`docs/converting.md` shows how, `generate` included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.position_ids import position_ticks, to_float32
from megatron_v2pe.v2pe.settings import Stride, parse_stride


def transformers_positions(
    input_ids: Tensor,
    *,
    image_token_id: int,
    stride: str | Stride | float | Sequence[str | Stride | float],
    tokens_per_tile: int = 256,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Return the V2PE positions of a batch of prompts as `position_ids` of a model of `transformers`.

    An image is a run of image tokens; all of its tiles are one run. Positions are exact up to the one rounding to
    float32, which loses nothing while a position is below 2^24 over the ticks of one position: 65,536 for a stride of 1
    at 256 tokens a tile. At position 1,000,000 it is 1/32 at most, and `transformers` itself rounds angles there by
    as much.

    Args:
        input_ids: int64 [B, S], or [S] of one prompt.
        image_token_id: id of the token that stands for a piece of an image, `config.image_token_id`.
        stride: positions that one tile spans, for all images or one for each in order: `64`, `1/2`, `0.5`.
        tokens_per_tile: image tokens of a tile, `config.image_seq_length`.
        attention_mask: [B, S], 1 for tokens and 0 for padding, which gets position 1 and does not advance.

    Returns:
        float32 [B, S]; one prompt [S] gives [1, S].

    Raises:
        DataError: a run of image tokens is no whole number of tiles, or strides are not one for each image; the numbers
            are printed.
        ConfigError: a stride cannot be read.
    """
    ids = input_ids.reshape(1, -1) if input_ids.dim() == 1 else input_ids
    mask = None if attention_mask is None else attention_mask.reshape(ids.shape)
    found = [_images(row, image_token_id, tokens_per_tile) for row in ids]
    total = sum(len(images) for images in found)
    if isinstance(stride, Sequence) and not isinstance(stride, str):
        strides = [parse_stride(value) for value in stride]
        if len(strides) != total:
            raise DataError(f"{len(strides)} strides for {total} images: state one for all, or one for each")
    else:
        strides = [parse_stride(stride)] * total
    rows, begin = [], 0
    for number, images in enumerate(found):
        here, begin = strides[begin : begin + len(images)], begin + len(images)
        real = None if mask is None else mask[number]
        ticks = position_ticks(ids.shape[1], images, here, tokens_per_tile, mask=real)
        rows.append(to_float32(ticks.values, ticks.denominator))
    return torch.stack(rows).to(ids.device)


def _images(ids: Tensor, image_token_id: int, tokens_per_tile: int) -> list[tuple[int, int]]:
    """Return of every run of image tokens the index of its first token and its tiles."""
    is_image = torch.nn.functional.pad((ids.cpu() == image_token_id).to(torch.int8), (1, 1))
    change = is_image.diff()
    starts = (change == 1).nonzero().flatten().tolist()
    ends = (change == -1).nonzero().flatten().tolist()
    for start, end in zip(starts, ends, strict=True):
        if (end - start) % tokens_per_tile:
            raise DataError(
                f"{end - start} image tokens from index {start} on are no whole number of tiles of {tokens_per_tile} "
                "tokens; tokens_per_tile is config.image_seq_length"
            )
    return [(start, (end - start) // tokens_per_tile) for start, end in zip(starts, ends, strict=True)]
