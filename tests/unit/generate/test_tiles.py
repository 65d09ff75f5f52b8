"""Tiles that are read where they are encoded: the same as read at once, and no image but those asked for is opened."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_v2pe.data.image_files import open_image
from megatron_v2pe.data.image_plan import TilingOptions, plan_images
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.types import Picture
from megatron_v2pe.errors import DataError
from megatron_v2pe.generate.tiles import ImageTiles, TileReader

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
    from megatron_v2pe.data import image_tiles as module

    calls = []

    def read_frames(path, frames, operations):
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


@pytest.fixture
def reader():
    readers = []

    def make(workers=2, most_tiles=100):
        readers.append(TileReader(workers, most_tiles))
        return readers[-1]

    yield make
    for made in readers:
        made.close()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("most_tiles", [1, 4, 100])
def test_tiles_read_ahead_are_the_same(run, pictures, reader, workers, most_tiles):
    tiles, opened = run
    whole = read_tiles(pictures, 28, MEAN)
    threads = reader(workers, most_tiles)
    for _ in range(2):
        threads.start(tiles[2:])
        assert torch.equal(torch.stack(list(tiles[2:])), whole[2:])
        tiles.forget_ahead()
    assert sorted(opened) == sorted([1, 2, 3, 4] * 2)  # none twice, the first not at all


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_no_more_is_held_than_said(pictures, reader):
    """Threads stand still at the limit until tiles are taken, and no one waits for what no thread has."""
    started = []
    tiles = ImageTiles(pictures, 28, MEAN, lambda picture: (started.append(picture), open_image(picture.path))[1])
    threads = reader(2, pictures[0].num_tiles + pictures[1].num_tiles)
    threads.start(tiles)
    wait_for(lambda: len(started) == 2)
    time.sleep(0.1)
    assert len(started) == 2
    passing = iter(tiles)
    for _ in range(pictures[0].num_tiles + 1):
        next(passing)
    wait_for(lambda: len(started) > 2)
    assert len([next(passing) for _ in range(len(tiles) - pictures[0].num_tiles - 1)]) > 5
    assert len(started) == len(pictures)


def test_a_second_pass_reads_again(run, reader):
    """A question that is asked again after an error."""
    tiles, opened = run
    reader().start(tiles)
    first, second = list(tiles), list(tiles)
    assert torch.equal(torch.stack(first), torch.stack(second)) and sorted(opened) == sorted([*range(5)] * 2)


def test_what_a_thread_cannot_read_is_an_error_where_it_is_used(tmp_path, reader):
    Image.new("RGB", (28, 28)).save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    tiles = ImageTiles([Picture(str(tmp_path / name), None) for name in ("good.png", "torn.png")], 28, MEAN)
    reader().start(tiles)
    assert len(list(tiles[:1])) == 1
    with pytest.raises(DataError, match=r"torn.png: (damaged|not an) image"):
        list(tiles)


def test_what_is_given_up_makes_room(pictures, reader):
    threads = reader(1, 1)
    unused, used = ImageTiles(pictures, 28, MEAN), ImageTiles(pictures, 28, MEAN)
    threads.start(unused)
    threads.start(used)
    unused.forget_ahead()
    assert len(list(used)) == len(used) and threads._held <= 0 and not threads._waiting
