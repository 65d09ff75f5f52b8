"""The images a question names as pictures to be cut: files, frames of videos, and what is to be enlarged first."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.data.image_transform import image_size, open_image
from megatron_v2pe.data.types import AS_PUBLISHED, Opening, Picture
from megatron_v2pe.data.video import read_frames
from megatron_v2pe.evaluate.benchmark import ImageRef


@dataclass(frozen=True)
class EnlargedPicture(Picture):
    """A picture whose sides are multiplied before it is cut."""

    enlarge: int = 1
    """By how much; bilinear."""


def picture_of(reference: ImageRef, options: TilingOptions) -> Picture:
    """Decide an image's tiles; no more than its header is read, and not even that where it is one tile anyway.

    Args:
        reference: the image; frames of videos are not enlarged.
        options: how it becomes tiles.

    Raises:
        DataError: a file is missing or not an image; names it.
    """
    assert reference.frame is None or reference.enlarge == 1
    grid = options.grid(*size_of(reference, options.opening)) if options.dynamic else None
    return EnlargedPicture(
        path=reference.path,
        grid=grid,
        thumbnail=options.thumbnail and grid is not None and grid != (1, 1),
        frame=reference.frame,
        pad_to_square=options.pads_images,
        opening=options.opening,
        enlarge=reference.enlarge,
    )


def size_of(reference: ImageRef, opening: Opening = AS_PUBLISHED) -> tuple[int, int]:
    """Return width and height of an image as it is cut.

    Raises:
        DataError: a file is missing or damaged; names it.
    """
    if reference.frame is not None:
        return read_frames(reference.path, [reference.frame])[0].size
    width, height = image_size(reference.path, opening)
    return width * reference.enlarge, height * reference.enlarge


def open_enlarged(picture: Picture) -> Image.Image:
    """Read a picture that is no frame of a video as RGB, and enlarge it.

    Raises:
        DataError: the file is missing or damaged; names it.
    """
    image = open_image(picture.path, opening=picture.opening)
    times = picture.enlarge if isinstance(picture, EnlargedPicture) else 1
    if times == 1:
        return image
    return image.resize((image.width * times, image.height * times), Image.Resampling.BILINEAR)
