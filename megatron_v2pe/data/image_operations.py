"""What may be done to an image between its file and its tiles: one class for each operation, listed by name.

| name | stage | asked for by |
|---|---|---|
| `transparency` | `opened` | the field `transparency` of a data list, `--transparency` of the asking tools |
| `exif_rotation` | `rgb` | the field `exif_rotation` of a data list, `--exif-rotation` |
| `pad_to_square` | `whole` | the setting `data.pad2square` |
| `jpeg` | `tile` | the field `data_augment` of a data list |
| `enlarge` | `rgb` | a question of a benchmark (`evaluate/prompting.py`) |
| every other one | its own | the field `image_operations` of a data list: its name, or an object with its parameters |

The list of a data set's operations is built once (`operations_of`) and travels with every picture
(`Picture.operations`); the code in between does not know what is in it. **To add one**, write a frozen dataclass that
derives from `ImageOperation`, with `@image_operation("name")` before it, here or in the file `image_operations.py` of
a plugin folder (`base/plugins.py`), and name it in a data list: `"jitter"`, or `{"name": "jitter", "strength": 0.2}` to
set fields of the dataclass, which are checked against their types. The pixels of a picture depend on its file, its
operations and its key alone, so that a resumed run reads the same ones.

The last step, the normalisation, is not in the list: it happens on the device (`kernels/tiles.py`), with the numbers of
`NORMALISATION`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from PIL import Image

from megatron_v2pe.base.keyed_random import uniform
from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign import images as foreign
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import typed
from megatron_v2pe.foreign.text import parse_json

NORMALISATION: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of each channel, by `normalize_type`."""
JPEG_QUALITIES = range(75, 101)
"""The qualities that the JPEG augmentation draws from."""
Grid = tuple[int, int]
"""Columns and rows of tiles."""
Stage = Literal["opened", "rgb", "whole", "tile"]
"""When an operation is applied: `opened`, to a picture of at most 8 bits a channel and any mode, before it becomes RGB;
`rgb`, to every picture as soon as it is RGB; `whole`, to a picture that is about to be cut; `tile`, to each tile before
it takes its final size. Frames of video files arrive as RGB, so that the first two stages do not concern them."""


@dataclass(frozen=True)
class ImageFacts:
    """What an operation may use besides the pixels; each field says at which stages it is known."""

    orientation: int = 1
    """EXIF orientation of the file, 1 to 8. Stage `rgb`, and `size_after`."""
    mask: Image.Image | None = None
    """Which pixels of a grey picture of more than 8 bits are not transparent. Stage `opened`."""
    grid: Grid | None = None
    """How the picture is cut; None: it becomes one tile as a whole. Stages `whole` and `tile`."""
    mean: Sequence[float] = ()
    """Mean colour of the normalisation, for each channel from 0 to 1. Stages `whole` and `tile`."""
    key: tuple[int, ...] = ()
    """What random draws are keyed by: seed, epoch, number of the sample, place of the image in the sample; at the stage
    `tile` also the number of the tile. It is empty at `opened` and `rgb`: draw at `whole` or `tile`."""


class ImageOperation(Protocol):
    """One thing that is done to an image. Two operations that compare equal do the same."""

    name: ClassVar[str] = ""
    """Name in a data list; the decorator `image_operation` sets it."""
    stage: ClassVar[Stage]
    resizes: ClassVar[bool] = False
    """Whether `size_after` may return another size than it is given; operations of the stages `opened` and `rgb`."""

    def applies_to(self, grid: Grid | None) -> bool:
        """Return whether the operation concerns a picture that is cut into this grid."""
        return True

    def size_after(self, size: tuple[int, int], facts: ImageFacts) -> tuple[int, int]:
        """Return width and height after the operation, for a picture whose header alone has been read."""
        return size

    def apply(self, image: Image.Image, facts: ImageFacts) -> Image.Image:
        """Return the changed image: a function of its pixels, the operation and the facts alone."""
        ...


Operations = tuple[ImageOperation, ...]
AnyOperation = TypeVar("AnyOperation", bound=type[ImageOperation])
IMAGE_OPERATIONS: Registry[type[ImageOperation]] = Registry("image operation", "megatron_v2pe.data", "image_operations")


def image_operation(name: str) -> Callable[[AnyOperation], AnyOperation]:
    """Return a class decorator that gives an operation its name and adds it to `IMAGE_OPERATIONS`."""

    def add(kind: AnyOperation) -> AnyOperation:
        kind.name = name
        IMAGE_OPERATIONS.add(name, kind)
        return kind

    return add


ListedOperation = str | dict[str, Any]
"""A further operation as a data list has it: a name, or an object of its `name` and of fields of its dataclass."""


def read_operations(listed: Sequence[ListedOperation], where: str) -> tuple[str, ...]:
    """Return further operations as text, which manifests, states of runs and comparisons have; all have to be known.

    The text of a bare name is the name. That of an object is its JSON, the fields in the order of their names.

    Raises:
        ConfigError: an operation is unknown (names the nearest), or lacks a field, has an unknown one or one of another
            type; begins with `where`.
    """
    texts = tuple(one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in listed)
    for text in texts:
        try:
            _operation(text)
        except ConfigError as error:
            raise ConfigError(f"{where}: image_operations: {error}") from None
    return texts


def _operation(text: str) -> ImageOperation:
    """Make the operation of a text that `read_operations` returns.

    Raises:
        ConfigError: it is unknown, or its fields are wrong.
    """
    content = parse_json(text, "an operation", ConfigError) if text.startswith("{") else {"name": text}
    values = dict(content)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{printable(text)[:100]}: found no name of an operation in the field 'name'")
    kind = IMAGE_OPERATIONS.get(name)
    return typed(kind, values, name, ConfigError) if is_dataclass(kind) else kind()


def operations_of(
    opening: Opening | None = None,
    pad_to_square: bool = False,
    augment: bool = False,
    further: Iterable[str] = (),
) -> Operations:
    """Return the operations that settings ask for, in the order in which operations of one stage are applied.

    Args:
        opening: how files become RGB; by default as in the published code.
        pad_to_square: the setting `data.pad2square`. As in the published code, augmented images are not padded.
        augment: the field `data_augment` of a data list.
        further: further operations, as `read_operations` returns them.

    Raises:
        ConfigError: there is no operation of such a name (names the nearest), or its fields are wrong.
    """
    found = list(() if opening is None else opening.operations)
    if pad_to_square and not augment:
        found.append(PadToSquare())
    if augment:
        found.append(JpegAugmentation())
    return (*found, *(_operation(text) for text in further))


def apply_all(operations: Operations, stage: Stage, image: Image.Image, facts: ImageFacts) -> Image.Image:
    """Return an image after all operations of one stage."""
    for operation in operations:
        if operation.stage == stage:
            image = operation.apply(image, facts)
    return image


def names_of(operations: Operations) -> tuple[str, ...]:
    """Return the names of operations, in order."""
    return tuple(operation.name for operation in operations)


@image_operation("transparency")
@dataclass(frozen=True)
class LayOnColour(ImageOperation):
    """Lay a picture with transparent pixels on white or black; otherwise the colours under these pixels would show."""

    stage: ClassVar[Stage] = "opened"
    ground: Literal["white", "black"] = "white"

    def apply(self, image: Image.Image, facts: ImageFacts) -> Image.Image:
        """Return the picture on its ground; one without transparent pixels as it is."""
        if facts.mask is not None:
            ground = Image.new("L", image.size, self.ground)
            ground.paste(image, mask=facts.mask)
            return ground
        if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
            return image
        image = plain_colours(image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, self.ground), image)


def plain_colours(image: Image.Image) -> Image.Image:
    """Return a picture of multiplied colours as one of plain colours: Pillow converts them in two steps only."""
    return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is set upright, by its EXIF orientation."""


@image_operation("exif_rotation")
@dataclass(frozen=True)
class ExifRotation(ImageOperation):
    """Turn a picture as its camera noted (EXIF)."""

    stage: ClassVar[Stage] = "rgb"
    resizes: ClassVar[bool] = True

    def size_after(self, size: tuple[int, int], facts: ImageFacts) -> tuple[int, int]:
        """Return width and height, exchanged where the picture lies on its side."""
        return (size[1], size[0]) if facts.orientation in (5, 6, 7, 8) else size

    def apply(self, image: Image.Image, facts: ImageFacts) -> Image.Image:
        """Return the picture upright."""
        turn = _TURNS.get(facts.orientation)
        return image if turn is None else image.transpose(turn)


@image_operation("pad_to_square")
@dataclass(frozen=True)
class PadToSquare(ImageOperation):
    """Pad a picture that becomes one tile as a whole to a square of the mean colour, before it is resized.

    The published code pads what it has cut: the tiles of a grid are square already, and stay as they are.
    """

    stage: ClassVar[Stage] = "whole"

    def applies_to(self, grid: Grid | None) -> bool:
        """Return whether the picture becomes one tile as a whole."""
        return grid is None

    def apply(self, image: Image.Image, facts: ImageFacts) -> Image.Image:
        """Return the padded picture; older indexed data sets also mark pictures of a grid, which are not padded."""
        return pad_to_square(image, facts.mean) if facts.grid is None else image


@image_operation("jpeg")
@dataclass(frozen=True)
class JpegAugmentation(ImageOperation):
    """Save each tile as JPEG, at a quality that is drawn anew in every epoch, and read it again."""

    stage: ClassVar[Stage] = "tile"

    def apply(self, image: Image.Image, facts: ImageFacts) -> Image.Image:
        """Return the tile after it was saved and read."""
        return jpeg_augment(image, JPEG_QUALITIES[uniform(len(JPEG_QUALITIES), *facts.key, purpose="jpeg quality")])


def jpeg_augment(image: Image.Image, quality: int) -> Image.Image:
    """Return the image after a trip through JPEG at the given quality."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    with foreign.open_image(stream.getvalue(), DataError) as opened:
        return opened.convert("RGB")


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Return an image in the middle of a square of the normalisation's mean colour."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@dataclass(frozen=True)
class Opening:
    """The two settings of how an image file becomes RGB, as a data list has and an indexed data set stores them."""

    transparency: Literal["drop", "white", "black"] = "drop"
    """`drop`: the colours under transparent pixels are shown, as in the published code; else the colour of the ground
    they are laid on."""
    exif_rotation: bool = False
    """Turn a picture as its camera noted (EXIF); the published code does not."""

    def __str__(self) -> str:
        """Return the settings as an entry of a data list has them."""
        return f"transparency {self.transparency!r}, exif_rotation {str(self.exif_rotation).lower()}"

    @property
    def operations(self) -> Operations:
        """Return the operations that these settings ask for."""
        ground = () if self.transparency == "drop" else (LayOnColour(self.transparency),)
        return (*ground, *((ExifRotation(),) if self.exif_rotation else ()))

    @classmethod
    def of(cls, operations: Operations) -> Opening:
        """Return the settings that ask for what opens files among these operations."""
        turned = any(isinstance(item, ExifRotation) for item in operations)
        for item in operations:
            if isinstance(item, LayOnColour):
                return cls(item.ground, turned)
        return cls(exif_rotation=turned)


AS_PUBLISHED = Opening()
