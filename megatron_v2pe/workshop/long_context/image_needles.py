"""Needles in images: pictures pasted into images of the haystack, or standing among them.

Needle pictures are the middle square of the images of a folder, scaled down to a tile at most, so that showing one
costs a single tile. `image_retrieval` and `image_counting` paste one into images of the haystack; the two reasoning
tasks insert images of their own: one with its lower right quarter cut out, whose piece is to be found among choices
(jigsaw), or two views of one picture, between which the camera moved left or right (multiview; here they are two
windows of one picture, as a camera that pans would see them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.workshop.long_context.draws import Draws
from megatron_v2pe.workshop.long_context.made_images import ImagePart, Shown, Size, centre, lower_right
from megatron_v2pe.workshop.long_context.needles import Needles
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER, image_size

GRID = 3
"""Cells along each side of an image needles are pasted into; a copy has a cell of its own."""
_CHOICES = 4
_HOSTS = (1, 3)
"""Fewest and most images a counted picture is pasted into."""
_MOST_COPIES = 4
_WINDOW = 0.7
"""Width of a view, of the picture's; the camera moves over the rest."""
_SMALLEST = 8


@dataclass(frozen=True)
class NeedleImages:
    """Pictures that can be hidden as needles."""

    paths: tuple[str, ...]
    sizes: tuple[Size, ...]
    side: int
    """Most pixels of a side where one is shown."""

    @classmethod
    def measure(cls, paths: Sequence[str], side: int, needed: int, folder: Path) -> NeedleImages:
        """Read the sizes of images.

        Args:
            paths: of the images.
            side: most pixels of a side where one is shown: a tile's.
            needed: fewest images the tasks take.
            folder: named in errors.

        Raises:
            ConfigError: fewer images than needed.
            DataError: one cannot be read.
        """
        sizes = [image_size(path) for path in paths]
        large = [(path, size) for path, size in zip(paths, sizes, strict=True) if min(size) >= _SMALLEST]
        if len(large) < needed:
            raise ConfigError(
                f"{folder}: {len(large)} different images of {_SMALLEST} pixels or more, the tasks take {needed}"
            )
        return cls(tuple(path for path, _ in large), tuple(size for _, size in large), side)

    def square(self, index: int) -> ImagePart:
        """Return the middle square of an image."""
        return ImagePart(self.paths[index], centre(self.sizes[index]), self.side)


def needed(tasks: Sequence[str]) -> int:
    """Return how many needle images some tasks take."""
    with_choices = {"image_retrieval", "image_reasoning_jigsaw"}
    return _CHOICES if with_choices & set(tasks) else 1


def image_needles(task: str, draws: Draws, images: NeedleImages, folder: str) -> Needles:
    """Return the needles of an image task.

    Args:
        task: one of `IMAGE_TASKS`.
        draws: of the sample.
        images: pictures to hide.
        folder: where images of this sample are made, relative to the folder that is written.
    """
    makers: dict[str, Callable[[Draws, NeedleImages, str], Needles]] = {
        "image_retrieval": _retrieval,
        "image_counting": _counting,
        "image_reasoning_jigsaw": _jigsaw,
        "image_reasoning_multiview": _multiview,
    }
    return makers[task](draws, images, folder)


def _shared(images: NeedleImages, index: int) -> Shown:
    """A needle picture as it is shown in questions; samples share the file."""
    part = images.square(index)
    return Shown(f"images/needles/{index:06d}.jpg", part.size, part)


def _retrieval(draws: Draws, images: NeedleImages, folder: str) -> Needles:
    chosen = draws.order(len(images.paths), "needles")[:_CHOICES]
    order = draws.order(_CHOICES, "choices")
    choices = tuple(_shared(images, chosen[i]) for i in order)
    return Needles(
        "image_retrieval",
        "Which of the following pictures was pasted into one of the images above?",
        order.index(0),
        pasted=images.square(chosen[0]),
        copies=(1,),
        choice_images=choices,
        recorded=(choices[order.index(0)].path,),
        sources=tuple(images.paths[index] for index in chosen),
    )


def _counting(draws: Draws, images: NeedleImages, folder: str) -> Needles:
    index = draws.integer(len(images.paths), "needles")
    low, high = _HOSTS
    hosts = low + draws.integer(high - low + 1, "hosts")
    copies = tuple(1 + draws.integer(_MOST_COPIES, "copies", host) for host in range(hosts))
    shown = _shared(images, index)
    return Needles(
        "image_counting",
        f"Copies of this picture were pasted into some of the images above: {PLACEHOLDER}\nHow many copies does each "
        "of these images hold? Leave out images without any; give the numbers in the order of the images, as a JSON "
        "list such as [2, 1, 3].",
        list(copies),
        pasted=images.square(index),
        copies=copies,
        question_images=(shown,),
        recorded=(shown.path,),
        sources=(images.paths[index],),
    )


def _jigsaw(draws: Draws, images: NeedleImages, folder: str) -> Needles:
    chosen = draws.order(len(images.paths), "needles")[:_CHOICES]
    order = draws.order(_CHOICES, "choices")
    whole = images.square(chosen[0])
    puzzle = ImagePart(whole.source, whole.box, whole.longest, hole=True)
    inserted = Shown(f"{folder}_puzzle.jpg", puzzle.size, puzzle)
    choices: list[Shown] = []
    for position, i in enumerate(order):
        square = images.square(chosen[i])
        piece = ImagePart(square.source, lower_right(square.box), max(1, square.longest // 2))
        choices.append(Shown(f"{folder}_piece{position}.jpg", piece.size, piece))
    return Needles(
        "image_reasoning_jigsaw",
        "The lower right quarter of one of the images above is missing and left black. Which of the following pictures "
        "is the missing piece?",
        order.index(0),
        inserted=(inserted,),
        choice_images=tuple(choices),
        recorded=(inserted.path,),
        sources=tuple(images.paths[index] for index in chosen),
    )


def _multiview(draws: Draws, images: NeedleImages, folder: str) -> Needles:
    index = draws.integer(len(images.paths), "needles")
    width, height = images.sizes[index]
    side = min(height, int(width * _WINDOW))
    top = (height - side) // 2
    first, second = 0, width - side
    right = draws.integer(2, "direction")
    views: list[Shown] = []
    for number, left in enumerate((first, second) if right else (second, first), 1):
        part = ImagePart(images.paths[index], (left, top, left + side, top + side), images.side)
        views.append(Shown(f"{folder}_view{number}.jpg", part.size, part))
    return Needles(
        "image_reasoning_multiview",
        "Two of the images above show parts of one and the same picture, as a camera sees them that moves sideways. Is "
        "the camera moving left or right from the first of them to the second?",
        right,
        inserted=tuple(views),
        choices=("left", "right"),
        recorded=tuple(view.path for view in views),
        sources=(images.paths[index],),
    )
