"""Tiles of small pictures are kept, those of large, moving or augmented ones are read each time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_v2pe.data.image_operations import JpegAugmentation, PadToSquare
from megatron_v2pe.data.image_tiles import LARGEST, TileCache, read_tiles
from megatron_v2pe.data.types import Picture


@pytest.fixture
def opened():
    return []


def read(pictures, cache, opened, size=8):
    """Read pictures whose pixels say which they are; note what is opened."""

    def open_picture(picture):
        opened.append(picture.path)
        return Image.new("RGB", (size, size), (int(picture.path), 0, 0))

    return read_tiles(pictures, size, (0.5, 0.5, 0.5), (1, 2, 3), open_picture, cache=cache)


def test_a_picture_is_opened_once(opened):
    cache = TileCache()
    pictures = [Picture(str(number), None) for number in (3, 7, 3, 9, 9)]  # twice in turn: read as a group
    first, again = read(pictures, cache, opened), read(pictures, cache, opened)
    assert opened == ["3", "7", "9", "9", "9", "9"]
    assert torch.equal(first, again) and first[:, 0, 0, 0].tolist() == [3, 7, 3, 9, 9]
    first.zero_()  # what was handed out is not what is kept
    assert torch.equal(read(pictures, cache, opened), again)


@pytest.mark.parametrize("change", [JpegAugmentation(), PadToSquare()])
def test_what_differs_each_time_is_not_kept(change, opened):
    picture = dataclasses.replace(Picture("5", None), operations=(change,))
    cache = TileCache()
    read([picture], cache, opened)
    read([picture], cache, opened)
    assert opened == ["5", "5"] and not cache.kept


def test_another_cut_is_another_picture(opened):
    cache = TileCache()
    read([Picture("5", None)], cache, opened)
    read([Picture("5", (2, 1))], cache, opened)
    assert opened == ["5", "5"]


def test_room_and_size_are_limits():
    tiles = np.zeros((1, 8, 8, 3), np.uint8)
    cache = TileCache(most=2 * tiles.nbytes)
    for number in range(4):
        cache.offer(Picture(str(number), None), tiles)
    assert len(cache.kept) == 2 and cache.room == 0
    cache = TileCache()
    cache.offer(Picture("large", None), np.zeros(LARGEST + 1, np.uint8))
    assert not cache.kept
