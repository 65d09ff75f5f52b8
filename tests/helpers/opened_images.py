"""Images of benchmark questions, opened all at once, for tests that look at them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from megatron_v2pe.data.image_files import open_image
from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.data.types import Picture
from megatron_v2pe.data.video import read_frames
from megatron_v2pe.evaluate.benchmark import ImageRef
from megatron_v2pe.evaluate.prompting import picture_of


def open_images(images: Sequence[ImageRef]) -> list[Image.Image]:
    """Return images as RGB, enlarged where they are to be, in their order."""
    whole = TilingOptions(tile_size=448, dynamic=False)
    return [
        _opened(picture_of(image, whole)) if image.frame is None else read_frames(image.path, [image.frame])[0]
        for image in images
    ]


def _opened(picture: Picture) -> Image.Image:
    return open_image(picture.path, operations=picture.operations)
