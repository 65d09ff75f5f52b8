"""Image files from outside: opened by their content as one of a list of formats, with no other program's help."""

from __future__ import annotations

import io
from typing import BinaryIO

# Imported by name: a format Pillow does not know makes it import all fifty.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    IcoImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TgaImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from megatron_v2pe.foreign.files import Kind, Path_, check_regular

try:
    from PIL import AvifImagePlugin  # noqa: F401
except ImportError:  # Pillow before 11.3
    pass

_WANTED = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
"""Formats that are read, as far as this Pillow was built with them; JPEG includes those of several pictures (MPO).
Pillow knows fifty more; EPS starts Ghostscript, others have few readers and fewer tests."""

_ORIENTATION, _UPSIDE_DOWN = 274, 4  # a tag of TIFF, and its last value that leaves width and height in their places
# Scans of documents are larger than Pillow's guard against decompression bombs allows, but a damaged header can ask
# for 16 GB, and the process be killed. Pillow refuses above twice this: 537 million pixels, 2 GB.
_MOST_PIXELS, _PILLOWS_OWN = 2**28, Image.MAX_IMAGE_PIXELS


def open_image(source: Path_ | bytes, error: Kind) -> Image.Image:
    """Return an image whose header is read, its pixels not; to be closed.

    Args:
        source: path of a file, or its content.
        error: class of the error to raise where the path is no regular file.

    Raises:
        PIL.UnidentifiedImageError: none of `FORMATS`.
        Exception: whatever Pillow raises on damaged headers; `data.decoding` makes one error of these.
    """
    if isinstance(source, bytes):
        return _open(io.BytesIO(source))
    check_regular(source, error)
    return _open(str(source))


def _open(source: str | BinaryIO) -> Image.Image:
    # Pillow has one limit for the whole process, also asked when pixels are read. One that another program set stays.
    if Image.MAX_IMAGE_PIXELS == _PILLOWS_OWN:
        Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    image = Image.open(source, formats=FORMATS)
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_ORIENTATION, 1) > _UPSIDE_DOWN:
        # Pillow maps pixels that are stored plainly into memory by the width of the turned picture, and mixes them up.
        image.filename = ""  # what has no name is not mapped
    return image
