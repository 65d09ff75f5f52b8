"""Pictures of more than 8 bits are scaled by one stated rule or refused by mode, wherever a picture is opened."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from helpers.data_cases import Case, turns
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.image_files import image_size, open_image
from megatron_v2pe.data.image_operations import Opening
from megatron_v2pe.data.image_plan import TilingOptions, plan_images
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.indexed.files import measure_image
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import ImageRef
from megatron_v2pe.evaluate.embedded_images import store_image
from megatron_v2pe.evaluate.prompting import picture_of
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for

RAMP = np.tile(np.arange(32, dtype=np.float64) / 31, (8, 1))
"""Black to white, 32 x 8."""
WANTED = np.rint(RAMP * 255)


def png(path, samples, colour, depth=16, extra=b""):
    """A PNG of integer samples [height, width, channels], which Pillow itself cannot write."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in samples)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in [parts[0], *([(b"tRNS", extra)] if extra else []), parts[1], (b"IEND", b"")]:
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)


def tiff(path, values, **tags):
    """A TIFF of one strip, with the tags given by number."""
    known = {256: values.shape[1], 257: values.shape[0], 258: values.dtype.itemsize * 8, 259: 1, 262: 1, 277: 1}
    known |= {273: 8, 278: values.shape[0], 279: values.nbytes}
    known |= {339: {"u": 1, "i": 2, "f": 3}[values.dtype.kind], **{int(tag[1:]): value for tag, value in tags.items()}}
    order, body = (">", b"MM") if values.dtype.byteorder == ">" else ("<", b"II")
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(known.items()))
    where = 8 + values.nbytes + values.nbytes % 2
    head = body + struct.pack(f"{order}HI", 42, where)
    path.write_bytes(
        (head + values.tobytes()).ljust(where, b"\0") + struct.pack(f"{order}H", len(known)) + entries + b"\0" * 4
    )


def scaled(path, kind, top):
    tiff(path, (RAMP * top if "f" in kind else np.rint(RAMP * top)).astype(kind))


deep = np.rint(RAMP * 65535)
KINDS = {
    "grey16.png": lambda path: Image.fromarray(deep.astype(np.uint16)).save(path),
    "colour16.png": lambda path: png(path, np.repeat(deep[..., None], 3, 2), colour=2),
    "alpha16.png": lambda path: png(path, np.stack([deep, deep * 0 + 65535], 2), colour=4),
    "colour_alpha16.png": lambda path: png(path, np.stack([deep] * 3 + [deep * 0 + 65535], 2), colour=6),
    "little16.tif": lambda path: scaled(path, "<u2", 65535),
    "big16.tif": lambda path: scaled(path, ">u2", 65535),
    "white_is_zero16.tif": lambda path: tiff(path, (65535 - deep).astype("<u2"), t262=0),
    "grey16.pgm": lambda path: path.write_bytes(b"P5 32 8 65535\n" + deep.astype(">u2").tobytes()),
    "grey10.pgm": lambda path: path.write_bytes(b"P5 32 8 1023\n" + np.rint(RAMP * 1023).astype(">u2").tobytes()),
    "colour12.ppm": lambda path: path.write_bytes(
        b"P6 32 8 4095\n" + np.repeat(np.rint(RAMP * 4095)[..., None], 3, 2).astype(">u2").tobytes()
    ),
    "float.tif": lambda path: scaled(path, "<f4", 1),
    "float_big.tif": lambda path: scaled(path, ">f4", 1),
    "float_white_is_zero.tif": lambda path: tiff(path, (1 - RAMP).astype("<f4"), t262=0),
    "float_rounded.tif": lambda path: tiff(path, (RAMP * (1 + 2e-7) - 1e-7).astype("<f4")),
    "float.pfm": lambda path: path.write_bytes(b"Pf\n32 8\n-1.0\n" + RAMP.astype("<f4").tobytes()),
    "grey8.png": lambda path: Image.fromarray(WANTED.astype(np.uint8)).save(path),
    "colour8.png": lambda path: Image.fromarray(WANTED.astype(np.uint8)).convert("RGB").save(path),
    "palette.png": lambda path: Image.fromarray(WANTED.astype(np.uint8)).convert("P").save(path),
    "alpha8.png": lambda path: Image.fromarray(WANTED.astype(np.uint8)).convert("LA").save(path),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_depth_shows_the_same_ramp(tmp_path, name):
    KINDS[name](tmp_path / name)
    image = open_image(str(tmp_path / name))
    pixels = np.asarray(image).astype(int)
    assert image.mode == "RGB" and pixels.shape == (8, 32, 3)
    assert np.abs(pixels - WANTED[..., None]).max() <= 1 and (pixels[0, 0] == 0).all() and (pixels[0, -1] == 255).all()


def test_twelve_bits_are_those_of_the_file(tmp_path):
    """Twelve bits of a TIFF end at 4095; taken for sixteen the picture would be black."""
    values = np.rint(RAMP * 4095).astype(int).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], 1)
    packed = packed.astype(np.uint8)
    tiff(tmp_path / "a.tif", packed.reshape(8, -1), t256=32, t258=12)
    pixels = np.asarray(open_image(str(tmp_path / "a.tif"))).astype(int)
    assert np.abs(pixels - WANTED[..., None]).max() <= 1


REFUSED = {
    "whole32.tif": (lambda path: scaled(path, "<i4", 65535), r"mode I, 32 bits, signed"),
    "unsigned32.tif": (lambda path: scaled(path, "<u4", 65535), r"mode I, 32 bits, unsigned"),
    "signed16.tif": (lambda path: scaled(path, "<i2", 32767), r"mode I, 16 bits, signed"),
    "signed8.tif": (lambda path: scaled(path, "i1", 127), r"mode L, 8 bits, signed"),
    "planes16.tif": (
        lambda path: tiff(path, np.tile(deep, (3, 1)).astype("<u2"), t257=8, t262=2, t277=3, t284=2),
        r"(mode RGB, 16 bits, channel by channel|not an image)",
    ),
    "float64.tif": (lambda path: scaled(path, "<f8", 1), r"not an image .* a damaged TIFF, or of samples that are not"),
    "float255.tif": (lambda path: scaled(path, "<f4", 255), r"mode F: values from 0 to 255, expected 0 to 1"),
    "negative.tif": (lambda path: tiff(path, (RAMP - 0.5).astype("<f4")), r"mode F: values from -0.5 to 0.5"),
    "nan.tif": (lambda path: tiff(path, np.where(RAMP > 0.9, np.nan, RAMP).astype("<f4")), r"mode F: values from nan"),
    "infinite.tif": (lambda path: tiff(path, np.where(RAMP > 0.9, np.inf, 0).astype("<f4")), r"mode F: .* to inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_range_is_refused_by_mode_with_the_file_named(tmp_path, name):
    write, message = REFUSED[name]
    write(tmp_path / name)
    for read in (lambda path: open_image(path), lambda path: measure_image(path, whole=True)):
        with pytest.raises(DataError, match=rf"{name}: {message}"):
            read(str(tmp_path / name))
    if "mode F" not in message:  # what the header tells is refused before anything is planned
        with pytest.raises(DataError, match=message):
            image_size(str(tmp_path / name))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("form", ["png", "tif", "jp2", "webp", "bmp", "ico", "tga", "gif", "jpg"])
def test_pictures_of_eight_bits_are_equal_to_the_bit(tmp_path, mode, form):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / f"a.{form}"
    try:
        Image.fromarray(pixels).convert({"PA": "P", "LAB": "RGB"}.get(mode, mode)).convert(mode).save(path)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow writes no {form} of mode {mode}")
    with Image.open(path) as image:
        published = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(open_image(str(path))), published)


@pytest.fixture
def places(tmp_path, tokenizer):
    """A data list whose sample shows one picture as an image and as the frame of a folder, and where it is read."""

    def build(name, **entry):
        (tmp_path / "frames").mkdir()
        KINDS[name](tmp_path / name)
        KINDS[name](tmp_path / "frames" / name)
        rows = [{"image": name, "conversations": turns("what")}, {"video": "frames/", "conversations": turns("what")}]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entry = {"annotation": str(tmp_path / "a.jsonl"), "root": str(tmp_path), "data_augment": False, **entry}
        (tmp_path / "meta.json").write_text(json.dumps({"own": {"repeat_time": 1, **entry}}))
        config = config_for(tmp_path / "meta.json", min_num_frame=1, max_num_frame=1, max_dynamic_patch=1)
        return Case(tmp_path / "meta.json", DocumentEncoder(config, tokenizer, FACTS, StridePolicy("default"), seed=0))

    return build


@pytest.mark.parametrize("name", ["grey16.png", "float.tif"])
def test_the_rule_holds_wherever_a_picture_is_opened(places, tmp_path, name):
    case, found = places(name), {}
    dataset = Dataset("own", str(tmp_path / "a.jsonl"), root=f"{tmp_path}/")
    for line, kind in enumerate(("image", "frame")):
        document = case.encoder.document(dataset, line, 0, 0)
        found[f"online, {kind}"] = read_tiles(document.pictures, 28, (0, 0, 0), document.key)
    for images in ("reference", "embed"):
        samples = case.build(tmp_path / images, images=images, image_check="full")
        for line, kind in enumerate(("image", "frame")):
            document = case.encoder.draw(samples[line], 0, 0)
            tiles = read_tiles(document.pictures, 28, (0, 0, 0), document.key, samples.files.open_picture)
            found[f"{images}, {kind}"] = tiles
    content = base64.b64decode(base64.b64encode((tmp_path / name).read_bytes()))
    for kind, path in {
        "benchmark": str(tmp_path / name),
        "inside a table": store_image(content, tmp_path, "x"),
    }.items():
        picture = picture_of(ImageRef(path), case.encoder.tiling())
        found[kind] = read_tiles([picture], 28, (0, 0, 0))
    first = found.pop("online, image")
    assert first[0, 0, 0, 0] < 10 and first[0, 0, -1, 0] > 245 and 100 < first.float().mean() < 155
    assert all((tiles == first).all() for tiles in found.values()) and len(found) == 7


def transparent(kind):
    """A picture whose left half is red (grey) under full transparency, and whose right half is blue (bright)."""
    image = Image.new("RGBA", (8, 4), (200, 10, 10, 0))
    image.paste((10, 10, 200, 255), (4, 0, 8, 4))
    if kind == "P":
        image = Image.fromarray(np.tile(np.array([0] * 4 + [1] * 4, np.uint8), (4, 1))).convert("P")
        image.putpalette([200, 10, 10, 10, 10, 200])
        image.info["transparency"] = 0
    return image if kind in ("RGBA", "P") else image.convert(kind)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "grey16", "colour16"])
@pytest.mark.parametrize("ground", ["white", "black", "drop"])
def test_transparency_as_the_data_list_says(places, tmp_path, tokenizer, monkeypatch, kind, ground):
    def write(path):
        if kind == "colour16":
            left, right = [5000, 300, 9], [60000, 0, 0]
            extra = np.array(left, ">u2").tobytes()
            png(path, np.tile(np.array([left] * 4 + [right] * 4), (4, 1, 1)), colour=2, extra=extra)
        elif kind == "grey16":
            png(path, np.tile(np.array([5000] * 4 + [60000] * 4), (4, 1))[..., None], colour=0, extra=b"\x13\x88")
        else:
            transparent(kind).save(path)

    monkeypatch.setitem(KINDS, "a.png", write)
    case = places("a.png", transparency=ground)
    samples = case.build(tmp_path / "set", images="embed")
    with Image.open(tmp_path / "a.png") as image:
        left, right = (image.convert("RGB").getpixel((x, 0)) for x in (0, 7))
    if kind == "grey16":
        left, right = (5000 >> 8,) * 3, (60000 >> 8,) * 3
    left = {"white": (255, 255, 255), "black": (0, 0, 0), "drop": left}[ground]
    for line in (0, 1):
        document = case.encoder.draw(samples[line], 0, 0)
        tiles = read_tiles(document.pictures, 28, (0, 0, 0), document.key, samples.files.open_picture)
        online = case.encoder.document(
            Dataset("own", str(tmp_path / "a.jsonl"), f"{tmp_path}/", transparency=ground), line, 0, 0
        )
        assert (read_tiles(online.pictures, 28, (0, 0, 0), online.key) == tiles).all()
        assert tuple(tiles[0, 0, 0].tolist()) == left and tuple(tiles[0, 0, -1].tolist()) == right


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_cameras(tmp_path, tokenizer, orientation):
    """The plan of tiles and the pixels turn together; as published neither does."""
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.new("RGB", (112, 28), "black")
    image.paste("white", (0, 0, 28, 28))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.jpg", "conversations": turns("what")}) + "\n")
    entry = {"annotation": str(tmp_path / "a.jsonl"), "root": str(tmp_path), "data_augment": False, "repeat_time": 1}
    (tmp_path / "meta.json").write_text(json.dumps({"own": {**entry, "exif_rotation": True}}))
    encoder = DocumentEncoder(config_for(tmp_path / "meta.json"), tokenizer, FACTS, StridePolicy("default"), seed=0)
    samples = Case(tmp_path / "meta.json", encoder).build(tmp_path / "set")
    dataset = Dataset("own", str(tmp_path / "a.jsonl"), f"{tmp_path}/", exif_rotation=True)
    built, online = encoder.draw(samples[0], 0, 0), encoder.document(dataset, 0, 0, 0)
    assert [picture.grid for picture in built.pictures] == [picture.grid for picture in online.pictures]
    assert online.pictures[0].grid == ((1, 4) if orientation >= 5 else (4, 1))
    tiles = read_tiles(online.pictures, 28, (0, 0, 0), online.key).float().mean((1, 2, 3))
    assert int(tiles[:4].argmax()) == (0 if orientation in (1, 4, 5, 6) else 3)
    assert (
        read_tiles(built.pictures, 28, (0, 0, 0), (), samples.files.open_picture).float().mean((1, 2, 3)) == tiles
    ).all()
    published = encoder.document(Dataset("own", str(tmp_path / "a.jsonl"), f"{tmp_path}/"), 0, 0, 0)
    assert published.pictures[0].grid == (4, 1)


@pytest.mark.parametrize("mode", ["L", "I;16", "I;16B", "RGB", "F"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_the_turned_picture(tmp_path, mode, orientation):
    """Pillow turns TIFF files itself, and mixes up the pixels of a grey one that it maps into memory."""
    shades = np.arange(32).reshape(4, 8) * 8
    kinds = {"L": np.uint8(shades), "I;16": np.uint16(shades * 256), "F": np.float32(shades / 255)}
    kinds |= {"I;16B": kinds["I;16"].astype(">u2"), "RGB": np.repeat(kinds["L"][..., None], 3, 2)}
    image = Image.fromarray(kinds[mode])
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.tif", exif=exif)
    Image.fromarray(np.uint8(shades)).save(tmp_path / "a.png", exif=exif)
    turned = open_image(str(tmp_path / "a.png"), operations=Opening(exif_rotation=True).operations)
    for opening in (Opening(), Opening(exif_rotation=True)):
        found = open_image(str(tmp_path / "a.tif"), operations=opening.operations)
        assert found.size == image_size(str(tmp_path / "a.tif"), opening.operations) == turned.size
        assert np.abs(np.asarray(found).astype(int) - np.asarray(turned)).max() <= 1


def test_a_picture_without_pixels(tmp_path):
    path = tmp_path / "a.tif"
    tiff(path, np.zeros((1, 1), np.uint8), t256=0)
    with pytest.raises(DataError, match=r"a.tif: "):
        image_size(str(path))
    assert TiffImagePlugin  # the plugin is there: the file is refused for what it holds


@pytest.mark.parametrize("orientation", range(1, 9))
def test_questions_open_pictures_as_they_are_told(tmp_path, orientation):
    """`--exif-rotation` and `--transparency` of generation and evaluation: tiles and pixels as training has them."""
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.new("RGBA", (112, 28), (0, 0, 0, 0))
    image.paste((200, 10, 10, 255), (0, 0, 28, 28))
    image.save(tmp_path / "a.png", exif=exif)
    opening = Opening("white", exif_rotation=True)
    options = TilingOptions(tile_size=28, max_num=6, operations=opening.operations)
    [trained] = plan_images([str(tmp_path / "a.png")], options)
    asked = picture_of(ImageRef(str(tmp_path / "a.png")), options)
    assert asked.grid == trained.grid == ((1, 4) if orientation >= 5 else (4, 1))
    tiles = read_tiles([trained], 28, (0, 0, 0))
    assert (read_tiles([asked], 28, (0, 0, 0)) == tiles).all()
    assert tiles.max() == 255 and int(tiles[:4].float().mean((1, 2, 3)).argmin()) == (
        0 if orientation in (1, 4, 5, 6) else 3
    )
    large = picture_of(ImageRef(str(tmp_path / "a.png"), enlarge=2), options)
    assert large.grid == trained.grid
    assert open_image(large.path, operations=large.operations).size == ((56, 224) if orientation >= 5 else (224, 56))
