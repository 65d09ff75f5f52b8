"""The images a question names, opened: files, frames of videos, and what is to be enlarged first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from PIL import Image

from megatron_v2pe.data.image_transform import open_image
from megatron_v2pe.data.video import read_frames
from megatron_v2pe.evaluate.benchmark import ImageRef


def open_images(images: Sequence[ImageRef]) -> list[Image.Image]:
    """Return images as RGB, in their order; a video is decoded once for neighbouring frames of it.

    Raises:
        DataError: a file is missing or damaged; names it.
    """
    opened: list[Image.Image] = []
    for (path, is_frame), group in groupby(images, key=lambda image: (image.path, image.frame is not None)):
        same = list(group)
        if is_frame:
            found = read_frames(path, [image.frame for image in same if image.frame is not None])
        else:
            found = [open_image(path) for _ in same]
        opened += [_enlarged(picture, image.enlarge) for picture, image in zip(found, same, strict=True)]
    return opened


def _enlarged(picture: Image.Image, times: int) -> Image.Image:
    if times == 1:
        return picture
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.BILINEAR)
