"""`pad2square` with dynamic tiling: the same tiles in training and evaluation, those of the published code.

The published transform pads what dynamic tiling has cut, and a tile is square: of 900 x 300 pixels 3 x 1 tiles are cut,
and nothing is padded. Kind of fault: two places decide over an image's tiles, and differ.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image

from megatron_v2pe.data.image_files import open_image
from megatron_v2pe.data.image_operations import NORMALISATION, PadToSquare, operations_of, pad_to_square
from megatron_v2pe.data.image_plan import TilingOptions, choose_grid, plan_images
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.types import Picture
from megatron_v2pe.evaluate.benchmark import ImageRef
from megatron_v2pe.evaluate.prompting import picture_of

SIDE, MEAN = 28, NORMALISATION["imagenet"][0]
SIZES = ((90, 30), (30, 90), (56, 56), (28, 28), (84, 112), (20, 200))


@pytest.fixture
def images(tmp_path):
    for width, height in SIZES:
        Image.effect_noise((width, height), 80).convert("RGB").save(tmp_path / f"{width}x{height}.png")
    return {size: str(tmp_path / f"{size[0]}x{size[1]}.png") for size in SIZES}


def published_tiles(path: str, options: TilingOptions) -> torch.Tensor:
    """What the published code makes of an image: cut by its own size, then each part padded and resized."""
    image, parts = open_image(path), []
    if options.dynamic:
        columns, rows = choose_grid(*image.size, options.min_num, options.max_num, SIDE)
        whole = image.resize((SIDE * columns, SIDE * rows), Image.Resampling.BICUBIC)
        for row, column in itertools.product(range(rows), range(columns)):
            parts.append(whole.crop((column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)))
        if options.thumbnail and len(parts) > 1:
            parts.append(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    else:
        parts = [image]
    if PadToSquare() in options.operations:
        parts = [pad_to_square(part, MEAN) for part in parts]
    parts = [part.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for part in parts]
    return torch.stack([torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8) for part in parts])


@pytest.mark.parametrize(("dynamic", "pad", "thumbnail"), list(itertools.product((False, True), repeat=3)))
def test_training_evaluation_and_the_published_code_cut_alike(images, dynamic, pad, thumbnail):
    options = TilingOptions(
        SIDE, dynamic=dynamic, max_num=6, thumbnail=thumbnail, operations=operations_of(pad_to_square=pad)
    )
    for path in images.values():
        (trained,), asked = plan_images([path], options), picture_of(ImageRef(path), options)
        assert (asked.grid, asked.thumbnail, asked.operations) == (
            trained.grid,
            trained.thumbnail,
            trained.operations,
        )
        tiles = read_tiles([trained], SIDE, MEAN)
        assert torch.equal(tiles, read_tiles([asked], SIDE, MEAN))
        assert torch.equal(tiles.flatten(1), published_tiles(path, options))


def test_the_case_of_three_by_one(images):
    options = TilingOptions(SIDE, max_num=6, operations=(PadToSquare(),))
    (picture,) = plan_images([images[90, 30]], options)
    assert picture.grid == (3, 1) == picture_of(ImageRef(images[90, 30]), options).grid
    assert PadToSquare() not in picture.operations


def test_an_older_indexed_set_that_marks_tiles_as_padded_is_cut_the_same_way(images):
    marked, plain = (Picture(images[90, 30], (3, 1), operations=found) for found in ((PadToSquare(),), ()))
    assert torch.equal(read_tiles([marked], SIDE, MEAN), read_tiles([plain], SIDE, MEAN))


def test_augmented_images_are_not_padded(images):
    options = TilingOptions(SIDE, dynamic=False, operations=operations_of(pad_to_square=True, augment=True))
    assert PadToSquare() not in plan_images([images[90, 30]], options)[0].operations
