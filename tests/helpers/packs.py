"""Packs of random documents for parity tests: odd lengths, several images, unusual micro-batches by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.parity import Pack
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.position_ids import Ticks, position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy

IMG_START, IMG_END, IMG_CONTEXT = 503, 504, 505

Document = list[int]
"""Positive entries are runs of text tokens, negative ones images of so many tiles."""

_KINDS: dict[str, list[list[Document]]] = {
    "mixed": [
        [[5, -2, 7], [9], [3, -1, 4, -1, 2]],
        [[11], [6]],
        [[2, -3, 8], [5, -1, 2]],
        [[-1, 13], [4, -2, 1]],
    ],
    "text_only_last": [[[5, -2, 7]], [[4, -1, 9], [3]], [[6], [8]], [[13], [4]]],
    "image_only": [[[-1], [-2]], [[-3]], [[1, -1, 1]], [[-1, -1]]],
    "one_token": [[[5, -2, 7], [8]], [[9, -1, 2]], [[6]], [[7, -1, 4]]],
    "many_documents": [
        [[3], [1], [5, -1, 2], [7], [1, -1], [2], [11]],
        [[-1, 1], [1], [1], [9], [-2, 4]],
        [[5], [5], [5], [5], [5, -1, 5], [5]],
        [[1]],
    ],
    "family": [[[5, -2, 7], [9], [3, -1, 4, -1, 2], [30]], [[21], [6]]],
    "family, longer": [[[150, -2, 200], [9], [60, -3, 300]], [[400], [70]]],
    "nothing_supervised": [[[5, -2, 7]], [[9]], [[4, -1, 3]], [[8]]],
}


def random_packs(hf_config: dict[str, Any], policy: StridePolicy, kind: str) -> list[Pack]:
    """Draw the packs of a step, without padding."""
    config = InternVLConfig.from_hf(hf_config)
    generator = torch.Generator().manual_seed(len(kind))
    packs = [_pack(config, policy, documents, generator) for documents in _KINDS[kind]]
    if kind == "nothing_supervised":
        return [_supervise(pack, []) for pack in packs]
    if kind == "one_token":
        return [_supervise(pack, [2] if index == 1 else []) for index, pack in enumerate(packs)]
    return packs


def _supervise(pack: Pack, rows: list[int]) -> Pack:
    labels, weights = torch.full_like(pack.labels, -100), torch.zeros_like(pack.weights)
    labels[rows], weights[rows] = 17, 1.0
    return Pack(pack.input_ids, pack.position_ticks, pack.seqlens, labels, weights, pack.pixel_values)


def _pack(config: InternVLConfig, policy: StridePolicy, documents: list[Document], generator: torch.Generator) -> Pack:
    parts = [_document(config, policy, document, generator) for document in documents]
    tiles = sum(-part for document in documents for part in document if part < 0)
    shape = (tiles, config.vision.num_channels, config.tile_size, config.tile_size)
    ids, labels, weights = (torch.cat([part[place] for part in parts]) for place in (0, 2, 3))
    ticks = Ticks.joined([part[1] for part in parts], policy.denominator(config.tokens_per_tile))
    pixels = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Pack(ids, ticks, tuple(len(part[0]) for part in parts), labels, weights, pixels)


def _document(
    config: InternVLConfig, policy: StridePolicy, document: Document, generator: torch.Generator
) -> tuple[Tensor, Ticks, Tensor, Tensor]:
    """Return ids, ticks, shifted labels and weights; about two thirds of the text tokens are supervised."""
    ids: list[int] = []
    images: list[tuple[int, int]] = []
    for part in document:
        if part > 0:
            ids += torch.randint(3, 500, (part,), generator=generator).tolist()
        else:
            images.append((len(ids) + 1, -part))
            ids += [IMG_START, *[IMG_CONTEXT] * (-part * config.tokens_per_tile), IMG_END]
    tokens = torch.tensor(ids)
    strides = policy.draw(len(images), config.tokens_per_tile, epoch=0, sample=len(ids))
    denominator = policy.denominator(config.tokens_per_tile)
    ticks = position_ticks(len(ids), images, strides, config.tokens_per_tile, denominator)
    labels = torch.where(tokens < 500, tokens, -100)
    labels[torch.rand(len(ids), generator=generator) < 0.33] = -100
    labels = torch.cat([labels[1:], torch.tensor([-100])])
    supervised = (labels != -100).double()
    return tokens, ticks, labels, supervised / supervised.sum().clamp(min=1).sqrt()
