"""Tiles: grids and pixels equal to the reference's, bit for bit."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from megatron_v2pe.data.image_files import image_size, open_image
from megatron_v2pe.data.image_operations import NORMALISATION, jpeg_augment, pad_to_square
from megatron_v2pe.data.image_plan import candidate_grids, choose_grid, count_tiles
from megatron_v2pe.data.image_tiles import cut_tiles
from megatron_v2pe.errors import DataError
from megatron_v2pe.kernels.tiles import normalise_tiles

TABLE = {  # image -> (columns, rows, tiles) with at most 6 and at most 12 tiles
    (448, 448): ((1, 1, 1), (1, 1, 1)),
    (633, 634): ((1, 1, 1), (1, 1, 1)),
    (634, 634): ((2, 2, 5), (2, 2, 5)),
    (1098, 1098): ((2, 2, 5), (3, 3, 10)),
    (800, 600): ((3, 2, 7), (4, 3, 13)),
    (1000, 500): ((2, 1, 3), (2, 1, 3)),
    (500, 1000): ((1, 2, 3), (1, 2, 3)),
    (1280, 720): ((2, 1, 3), (4, 2, 9)),
    (100, 1000): ((1, 6, 7), (1, 10, 11)),
    (595, 842): ((2, 3, 7), (2, 3, 7)),
    (1700, 2200): ((2, 3, 7), (3, 4, 13)),
}


@pytest.mark.parametrize(("size", "expected"), TABLE.items(), ids=str)
def test_table(size, expected):
    for max_num, (columns, rows, tiles) in zip((6, 12), expected, strict=True):
        grid = choose_grid(*size, 1, max_num, 448)
        assert grid == (columns, rows)
        assert count_tiles(grid, thumbnail=True) == tiles


@pytest.mark.parametrize(("max_num", "count"), [(6, 14), (12, 35), (18, 58), (24, 84)])
def test_number_of_candidates(max_num, count):
    assert len(candidate_grids(1, max_num)) == count


def test_golden_grids(golden):
    content = json.loads((golden / "tiling_grid.json").read_text())
    assert len(content["rows"]) == 1200
    for row in content["rows"]:
        case = dict(zip(content["columns"], row, strict=True))
        grid = choose_grid(case["width"], case["height"], case["min_num"], case["max_num"], content["image_size"])
        assert grid == (case["grid_cols"], case["grid_rows"]), case
        assert count_tiles(grid, bool(case["use_thumbnail"])) == case["tiles"], case


def test_golden_pixels(golden):
    with safe_open(str(golden / "tiling_pixels.safetensors"), "pt") as stream:
        cases = json.loads(stream.metadata()["meta"])
        for name, case in cases.items():
            path = str(golden / "tiling_images" / case["file"])
            image, size = open_image(path), case["image_size"]
            mean, std = NORMALISATION[case.get("normalize_type", "imagenet")]
            if case.get("pad2square"):
                image = pad_to_square(image, mean)
            dynamic = case.get("dynamic", True)
            grid = choose_grid(*image_size(path), 1, case["max_num"], size) if dynamic else None
            tiles = cut_tiles(image, grid, case.get("use_thumbnail", False), size)
            ours = normalise_tiles(torch.from_numpy(tiles), mean, std)
            assert torch.equal(ours, stream.get_tensor(name)), name


def test_augmentation_is_seen_and_bounded():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    low, high = jpeg_augment(image, 75), jpeg_augment(image, 100)
    difference = [np.abs(np.asarray(image, int) - np.asarray(other, int)).mean() for other in (low, high)]
    assert difference[0] > difference[1] > 0


def test_errors_name_the_file(tmp_path):
    with pytest.raises(DataError, match="gone.png: no such image"):
        image_size(str(tmp_path / "gone.png"))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text.png: not an image \(5 bytes\)"):
        image_size(str(tmp_path / "text.png"))
    Image.new("RGB", (300, 300)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert image_size(str(tmp_path / "cut.png")) == (300, 300)
    with pytest.raises(DataError, match="cut.png: damaged image"):
        open_image(str(tmp_path / "cut.png"))


@pytest.mark.parametrize(
    "content",
    [
        b"P6 1000000000 1000000000 255\n",
        b"P6 99999999999999999999 1 255\n",
        b"P6 x 1 255\n",
        b"P6 30000 20000 255\n",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",",
        b"P6 4 4 0\n" + bytes(48),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -5, 7, 1, 24, 99, 0, 0, 0, 0, 0),
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + b"\x28",
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0x80, 0, 0),
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!",
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b",\0\0",
    ],
)
def test_damaged_headers(tmp_path, content):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged: "):
        open_image(str(path))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["GIF", "PPM", "BMP", "PNG", "JPEG", "TIFF", "WEBP"])
def test_damaged_images(tmp_path, monkeypatch, kind):
    """Whatever Pillow makes of a file cut short or overwritten, nothing but DataError leaves."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged header may ask for all memory
    stream, path, refused = io.BytesIO(), tmp_path / "damaged", 0
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(stream, kind)
    for trial in range(100):
        content = bytearray(stream.getvalue())
        for place in generator.integers(0, min(len(content), 60), 3):
            content[place] = generator.integers(256)
        path.write_bytes(content[: generator.integers(1, len(content))] if trial % 2 else content)
        try:
            open_image(str(path))
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 20


@pytest.mark.parametrize("path", ["a\0b.png", "\ud83d.png", "x" * 300])
def test_impossible_paths(path):
    with pytest.raises(DataError, match="no such image"):
        image_size(path)
