"""Tiles that are read where they are encoded: the same as read at once, and no image but those asked for is opened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_v2pe.data.image_transform import open_image
from megatron_v2pe.data.pictures import TilingOptions, plan_images, read_tiles
from megatron_v2pe.data.types import Picture
from megatron_v2pe.errors import DataError
from megatron_v2pe.generate.tiles import ImageTiles

MEAN = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(28, 28), (90, 30), (30, 60), (28, 28), (200, 30)]):
        pixels = draw.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        paths.append(str(folder / f"{number}.png"))
    return plan_images(paths, TilingOptions(28, max_num=4))


@pytest.fixture
def run(pictures):
    opened = []

    def open_picture(picture):
        opened.append(pictures.index(picture))
        return open_image(picture.path)

    return ImageTiles(pictures, 28, MEAN, open_picture), opened


def test_every_part_is_what_reading_all_gives(run, pictures):
    tiles, _ = run
    whole = read_tiles(pictures, 28, MEAN)
    assert len(tiles) == len(whole) > 10
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            part = tiles[start:stop]
            assert len(part) == stop - start
            assert torch.equal(torch.stack([whole[0], *part]), torch.cat([whole[:1], whole[start:stop]]))
    assert torch.equal(torch.stack(list(tiles[3:9][2:4])), whole[5:7])


def test_no_other_image_is_opened(run, pictures):
    tiles, opened = run
    list(tiles[1:3])  # of the second
    assert opened == [1]
    first = sum(picture.num_tiles for picture in pictures[:2])
    opened.clear()
    list(tiles[first - 1 : first + 1])
    assert opened == [1, 2]
    opened.clear()
    assert list(tiles[2:2]) == [] and opened == []
    next(iter(tiles))
    assert opened == [0]  # one at a time


def test_neighbouring_frames_are_decoded_together(tmp_path, monkeypatch):
    from megatron_v2pe.data import pictures as module

    calls = []

    def read_frames(path, frames):
        calls.append((path, frames))
        return [Image.new("RGB", (28, 28), (frame, 0, 0)) for frame in frames]

    monkeypatch.setattr(module, "read_frames", read_frames)
    frames = [Picture("a.mp4", None, frame=frame) for frame in (3, 5, 9)] + [Picture("b.mp4", None, frame=1)]
    tiles = ImageTiles(frames, 28, MEAN)
    assert [int(tile[0, 0, 0]) for tile in tiles[1:]] == [5, 9, 1]
    assert calls == [("a.mp4", [5, 9]), ("b.mp4", [1])]


def test_a_damaged_image_is_named_when_it_is_met(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[:50])
    tiles = ImageTiles([Picture(str(tmp_path / name), None) for name in ("good.png", "torn.png")], 28, MEAN)
    assert len(list(tiles[:1])) == 1
    with pytest.raises(DataError, match=r"torn.png: (damaged|not an) image"):
        list(tiles)
