"""From the file of a picture of any kind to eight bits of red, green and blue: one rule for every place that opens one.

| pictures | what becomes of them |
|---|---|
| 8 bits or fewer a channel (`1`, `L`, `P`, `RGB`, `CMYK`, `YCbCr`, ...) | `convert("RGB")`, as the published code |
| grey of 9 to 16 bits, unsigned (`I;16`, a PNG or PGM read as `I`) | the highest 8 of the bits the file declares |
| colour of 16 bits | the highest 8, which Pillow itself reads |
| float (`F`) with all values from 0 to 1 | times 255, rounded |
| float with a value outside, NaN or infinity | refused, with the values |
| whole numbers of 32 bits, or with a sign (of a TIFF) | refused: no range is agreed on |

Pillow would cut what is above 255, so that a 16-bit scan becomes a white page. The meaning of a TIFF in which 0 is
white is kept. Operations of the stages `opened` and `rgb` (`data.image_operations`) are applied on the way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from megatron_v2pe.data.image_operations import ImageFacts, Operations, apply_all, plain_colours
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign import images as foreign
from megatron_v2pe.foreign.printable import printable

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of one channel of more than 8 bits."""
_USUAL = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_ROUNDING = 1e-6
"""How far beyond 0 and 1 a computed float may lie."""
_ORIENTATION, _BITS, _SIGN, _ZERO_IS, _PLANES = 274, 258, 339, 262, 284
"""Tags of EXIF and TIFF: how a picture is turned, bits of a sample, whether it has a sign, what 0 looks like, whether
channels lie together."""
_SIGNED, _ZERO_IS_WHITE, _APART = 2, 0, 2


@contextmanager
def decoding(path: str, problem: str) -> Iterator[None]:
    """Raise whatever a decoder raises inside as DataError `path: problem: cause`; keep only its calls inside."""
    try:
        yield
    except DataError:
        raise
    # Third-party decoders raise anything on damaged input: IndexError, struct.error, MemoryError, UnicodeDecodeError...
    except Exception as error:
        raise DataError(f"{printable(path)}: {problem}: {type(error).__name__}: {printable(error)[:500]}") from error


def image_size(path: str, operations: Operations = ()) -> tuple[int, int]:
    """Return width and height as `open_image` gives them, reading no more than the file's header.

    Raises:
        DataError: no such file, or not an image.
    """
    with opened_image(path) as image, decoding(path, "damaged image"):
        size = image.size
        if any(operation.resizes for operation in operations):
            facts = ImageFacts(orientation=_orientation(image))
            for operation in operations:
                size = operation.size_after(size, facts)
        return size


def open_image(path: str, frame: int = 0, operations: Operations = ()) -> Image.Image:
    """Read an image, or one frame of an animated one, as RGB.

    Raises:
        DataError: no such file, not an image, damaged, or of a kind that is not read.
    """
    with opened_image(path) as image:
        return as_rgb(image, path, operations, frame)


def as_rgb(image: Image.Image, path: str, operations: Operations = (), frame: int = 0) -> Image.Image:
    """Read the pixels of an image that `opened_image` returned, as RGB.

    Raises:
        DataError: damaged, or its values are not read; names the file.
    """
    with decoding(path, "damaged image"), _naming(path):
        return to_rgb(ImageSequence.Iterator(image)[frame] if frame else image, operations)


def opened_image(path: str, content: bytes | None = None) -> Image.Image:
    """Return an image whose header is read, its pixels not; to be closed.

    Args:
        path: path of the file.
        content: its bytes where they are known already.

    Raises:
        DataError: no such file, a pipe, a folder or a device, not an image of a format that is read, or of a kind that
            is not read.
    """
    with decoding(path, "cannot be read"):
        try:
            image = foreign.open_image(path if content is None else content, DataError)
        except UnidentifiedImageError:
            size = os.path.getsize(path) if content is None else len(content)
            raise DataError(f"{printable(path)}: not an image ({size} bytes){_hint(path, content)}") from None
        except DataError:
            if content is None and not os.path.exists(path):
                raise DataError(f"{printable(path)}: no such image") from None
            raise
        with _naming(path):
            try:
                check_kind(image)
            except DataError:
                image.close()
                raise
        return image


def _hint(path: str, content: bytes | None) -> str:
    """Say what a file that is not known may be: of a TIFF of a kind it does not read Pillow says no more."""
    if content is None:
        with open(path, "rb") as stream:
            content = stream.read(4)
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return ""
    return (
        ": a damaged TIFF, or of samples that are not read (64-bit floats, float colours); save it as 8 or 16-bit PNG"
    )


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in errors about its kind."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from None


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


def to_rgb(image: Image.Image, operations: Operations = ()) -> Image.Image:
    """Return a picture as RGB of 8 bits, by the table above.

    Raises:
        DataError: there is no rule for its mode or values; names them, not the file.
        Exception: whatever Pillow raises on damaged pixels; `decoding` makes one error of these.
    """
    check_kind(image)
    orientation = _orientation(image) if any(operation.stage == "rgb" for operation in operations) else 1
    transparent, mask = image.info.get("transparency"), None
    if isinstance(transparent, tuple) and any(";16" in str(part[3]) for part in getattr(image, "tile", ())):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # a colour of 16 bits, read as 8
    if image.mode == "F" or image.mode in _DEEP:
        image, mask = _eight_bits(image)
    facts = ImageFacts(orientation=orientation, mask=mask)
    image = apply_all(operations, "opened", image, facts)
    return apply_all(operations, "rgb", plain_colours(image).convert("RGB"), facts)


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return a grey picture of more than 8 bits as one of 8, and a mask of it where one value means transparent."""
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
    transparent = image.info.get("transparency")
    if type(transparent) is not int:
        return Image.fromarray(grey), None
    return Image.fromarray(grey), Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


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
