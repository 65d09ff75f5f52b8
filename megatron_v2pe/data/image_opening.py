"""From a picture of any mode to eight bits of red, green and blue: one rule for every place that opens one.

| pictures | what becomes of them |
|---|---|
| 8 bits or fewer a channel (`1`, `L`, `P`, `RGB`, `CMYK`, `YCbCr`, ...) | `convert("RGB")`, as the published code |
| grey of 9 to 16 bits, unsigned (`I;16`, a PNG or PGM read as `I`) | the highest 8 of the bits the file declares |
| colour of 16 bits | the highest 8, which Pillow itself reads |
| float (`F`) with all values from 0 to 1 | times 255, rounded |
| float with a value outside, NaN or infinity | refused, with the values |
| whole numbers of 32 bits, or with a sign (of a TIFF) | refused: no range is agreed on |

Pillow would cut what is above 255, so that a 16-bit scan becomes a white page. What is meant by a TIFF whose 0 is white
is kept. Then transparency and the turn a camera noted are dealt with as the data list says (`Opening`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from megatron_v2pe.data.types import AS_PUBLISHED, Opening
from megatron_v2pe.errors import DataError

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of one channel of more than 8 bits."""
_USUAL = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_ROUNDING = 1e-6
"""How far beyond 0 and 1 a float may lie that was computed."""
_ORIENTATION, _BITS, _SIGN, _ZERO_IS, _PLANES = 274, 258, 339, 262, 284
"""Tags of EXIF and TIFF: how a picture is turned, bits of a sample, whether it has a sign, what 0 looks like, whether
channels lie together."""
_SIGNED, _ZERO_IS_WHITE, _APART = 2, 0, 2
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What rights a picture, by its orientation."""
_ON_THEIR_SIDE = (5, 6, 7, 8)


def check_kind(image: Image.Image) -> None:
    """Check that a picture whose header is read is of a kind that has a rule.

    Raises:
        DataError: no pixels, whole numbers without a range, or an unknown mode; names size or mode, not the file.
    """
    if min(image.size) < 1:
        raise DataError(f"{image.width} x {image.height} pixels: an image without pixels")
    bits, sign = _depth(image)
    if bits > 8 and _tag(image, _PLANES) == _APART and image.mode not in ("F", *_DEEP):
        raise DataError(f"mode {image.mode}, {bits} bits, channel by channel: read wrongly by Pillow; save it as PNG")
    if image.mode == "F" or (image.mode in _USUAL and sign != _SIGNED):
        return
    if image.mode not in (*_DEEP, *_USUAL):
        raise DataError(f"mode {image.mode}: not a kind of image that is read; save it as 8-bit RGB")
    if sign == _SIGNED or not 8 < bits <= 16:
        kind = "signed" if sign == _SIGNED else "unsigned"
        raise DataError(
            f"mode {image.mode}, {bits} bits, {kind}: whole numbers whose range is not known; save it with 8 or 16 "
            "bits, unsigned"
        )


def upright_size(image: Image.Image, opening: Opening) -> tuple[int, int]:
    """Return width and height as `to_rgb` gives them; no more than the header is read, where the format allows that."""
    if opening.exif_rotation and _orientation(image) in _ON_THEIR_SIDE:
        return image.height, image.width
    return image.size


def to_rgb(image: Image.Image, opening: Opening = AS_PUBLISHED) -> Image.Image:
    """Return a picture as RGB of 8 bits, by the rule above.

    Raises:
        DataError: there is none for its mode or values; names them, not the file.
        Exception: whatever Pillow raises on damaged pixels; `data.decoding` makes one error of these.
    """
    check_kind(image)
    turn = _TURNS.get(_orientation(image)) if opening.exif_rotation else None
    nothing, mask = image.info.get("transparency"), None
    if isinstance(nothing, tuple) and any(";16" in str(part[3]) for part in getattr(image, "tile", ())):
        image.info["transparency"] = tuple(value >> 8 for value in nothing)  # a colour of 16 bits, read as 8
    if image.mode == "F" or image.mode in _DEEP:
        image, mask = _eight_bits(image)
    if opening.transparency != "drop" and (mask is not None or _is_transparent(image)):
        image = _on_ground(image, mask, opening.transparency)
    image = _plain(image).convert("RGB")
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image) -> Image.Image:
    """Return a picture of multiplied colours as one of plain colours: Pillow converts them in steps alone."""
    return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in _TRANSPARENT or "transparency" in image.info


def _on_ground(image: Image.Image, mask: Image.Image | None, colour: str) -> Image.Image:
    """Lay a picture on a ground of one colour; `mask` is what of a grey one is seen."""
    if mask is not None:
        ground = Image.new("L", image.size, colour)
        ground.paste(image, mask=mask)
        return ground
    image = _plain(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return a grey picture of more than 8 bits as one of 8, and what of it is seen where one value means nothing."""
    image.load()
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())  # NaN if one is
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise DataError(
                f"mode F: values from {low:.8g} to {high:.8g}, expected 0 to 1; scale them, or save 8 or 16 bits"
            )
        grey = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    else:
        bits, _ = _depth(image)
        grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if _tag(image, _ZERO_IS) == _ZERO_IS_WHITE:
        grey = 255 - grey
    nothing = image.info.get("transparency")
    mask = Image.fromarray(np.where(values == nothing, 0, 255).astype(np.uint8)) if type(nothing) is int else None
    return Image.fromarray(grey), mask


def _depth(image: Image.Image) -> tuple[int, int]:
    """Return bits of a sample, and its TIFF sample format; what is deep and no TIFF has been scaled to 16 bits."""
    return _tag(image, _BITS, 16 if image.mode in _DEEP else 8), _tag(image, _SIGN, 1)


def _tag(image: Image.Image, tag: int, default: int | None = None) -> Any:
    """Return a tag of a TIFF file; of several values the first."""
    value = getattr(image, "tag_v2", {}).get(tag, default) if image.format == "TIFF" else default
    return value[0] if isinstance(value, tuple) and value else value


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture's pixels as they are read; Pillow turns a TIFF itself."""
    return 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
