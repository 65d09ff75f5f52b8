"""What travels through the data pipeline: a line as read, a sample as encoded, a micro-batch as trained on.

Nothing here computes; the shapes and units stated below are what the other modules keep to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from megatron_v2pe.data.image_operations import Operations
from megatron_v2pe.v2pe.position_ids import Ticks

IGNORE_INDEX = -100
"""Label of a token nothing is learned from."""


@dataclass(frozen=True)
class SampleId:
    """Where a sample comes from, for logs and errors."""

    dataset: str
    """Name in the data list."""
    line: int
    """Line of the annotation file, from 1."""
    file: str
    """The annotation file."""

    def __str__(self) -> str:
        """Return `file:line (dataset)`."""
        return f"{self.file}:{self.line} ({self.dataset})"


@dataclass(frozen=True)
class Sample:
    """One annotated conversation, read but not interpreted; without images it is text or a video."""

    id: SampleId
    conversations: tuple[tuple[str, str], ...]
    """(role, text) in turn; roles `human` and `gpt`, a human first, before it perhaps one of the role `system`."""
    images: tuple[str, ...] = ()
    """Paths of the images, in the order the text refers to them."""
    multi_image: bool = False
    """Whether the annotation gives a list of images; the text then says itself where each belongs."""
    video: str | None = None
    """Path of a video file or of a folder of frames."""
    clip: tuple[float, float] | None = None
    """Part of the video to use, start and end in seconds."""
    unknown: tuple[str, ...] = ()
    """Fields of the line that nobody reads and that are not usual either."""


@dataclass(frozen=True)
class Picture:
    """One image to be read and cut: everything about it but its pixels."""

    path: str
    """An image file, or a video file."""
    grid: tuple[int, int] | None
    """Columns and rows of tiles; None: the whole image as one tile."""
    thumbnail: bool = False
    """Whether the whole image follows as a last tile; never with a single one."""
    frame: int | None = None
    """Which frame of a video file or animation."""
    file: int | None = None
    """Number of the file in an indexed data set; None: `path` is read as it is found."""
    operations: Operations = ()
    """What is done to the image on its way to tiles; the stages `opened` and `rgb` do not concern frames of videos."""

    @property
    def num_tiles(self) -> int:
        """Tiles this image becomes."""
        return 1 if self.grid is None else self.grid[0] * self.grid[1] + int(self.thumbnail)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of each image it stands for: of itself."""
        return (self.num_tiles,)


@dataclass(frozen=True)
class Clip:
    """Part of a video, of which some frames are drawn anew in every epoch; how many is settled."""

    path: str
    """A video file, or a folder of frames (ends with `/`)."""
    frames: int
    """How many are drawn, one tile each."""
    first: int
    """First frame of the part."""
    last: int
    """The one after its last."""
    file: int | None = None
    """Number of the file in an indexed data set, as for a picture."""
    operations: Operations = ()
    """What is done to each frame; the stages `opened` and `rgb` concern folders of frames and GIFs."""

    @property
    def tiles(self) -> tuple[int, ...]:
        """Tiles of each image it stands for: one of each frame drawn."""
        return (1,) * self.frames


@dataclass(frozen=True)
class CompactText:
    """A conversation as tokens, each image as a single one: what does not depend on tiles, epochs or strides."""

    ids: np.ndarray
    """int32 [C]."""
    supervised: np.ndarray
    """int32 [n, 2]: ranges of `ids` a model learns to write, from and up to, in order, apart from one another."""
    images: np.ndarray
    """int64 [images]: where in `ids` the images stand."""


@dataclass(frozen=True)
class EncodedSample:
    """A sample as far as it is the same in every epoch and under every stride."""

    text: CompactText
    media: tuple[Picture | Clip, ...]
    """Its images, or its video."""
    num_tokens: int
    """Length with every image at its number of tiles."""
    source: SampleId

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        return sum(sum(item.tiles) for item in self.media)


@dataclass(frozen=True)
class Document:
    """One sample as tokens, ready to be packed; its tiles are still on disk."""

    input_ids: Tensor
    """int64 [L]."""
    labels: Tensor
    """int64 [L], in place (label t is token t), -100 where nothing is learned."""
    position_ticks: Ticks
    """Positions of the L tokens."""
    images: tuple[tuple[int, int], ...]
    """Per image: index of its first image token, number of tiles."""
    pictures: tuple[Picture, ...]
    """Per image: where its tiles come from."""
    source: SampleId
    key: tuple[int, ...] = ()
    """What the draws of its augmentation are keyed by: seed, epoch and number of the sample."""

    @property
    def num_tokens(self) -> int:
        """Length in tokens."""
        return self.input_ids.shape[0]

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        return sum(picture.num_tiles for picture in self.pictures)


@dataclass(frozen=True)
class Batch:
    """One micro-batch: documents packed one after the other, without padding."""

    input_ids: Tensor
    """int64 [S]."""
    labels: Tensor
    """int64 [S], shifted: label t is what token t predicts, -100 for nothing; never another document's."""
    loss_weights: Tensor
    """float32 [S], shifted like the labels, 0 where a label is -100."""
    position_ticks: Ticks
    """Positions of the S tokens, each document's from 0."""
    seqlens: tuple[int, ...]
    """Length of each document; S in all."""
    tiles: Tensor
    """uint8 [T, H, W, 3], tiles in the order of their image tokens: all where they were read, then those of a rank."""
    num_tiles: tuple[int, ...]
    """Tiles of each image of the pack, in order."""
    sources: tuple[SampleId, ...]
    """Where each document comes from."""
    unreadable: tuple[tuple[SampleId, str], ...] = ()
    """Samples of the pack that had to be left out, and why; known to the rank that reads them."""
