"""The forms that a sample takes on its way from an annotation line to the loss.

| form | what it adds | made by | taken by |
|---|---|---|---|
| a line (JSONL) | | | `annotations` |
| `Sample` | fields checked, turns named, paths resolved | `annotations` | `encode` |
| `EncodedSample` | tokens (`CompactText`), image tiles (`Picture`, `Clip`) | `encode`, `indexed.samples` | `encode` |
| `TrainingDocument` | what one pass draws: strides, so positions; frames of videos | `encode` | `pack_plan` |
| pack: `tuple[TrainingDocument, ...]` | which documents are trained together | `pack_plan`, `indexed.plan` | `batch` |
| `Batch` | pixels, shifted labels, loss weights, everything joined | `batch`, in reader processes | `train.data_feed` |
| `MicroBatch` | the share of one rank: its tokens, its tiles | `models.micro_batch` | `models.vlm`: the loss |

`EncodedSample` is what an indexed data set stores; its packs are numbers of samples until a reader draws the documents.
Nothing here computes; the shapes and units stated below are what the other modules keep to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from megatron_v2pe.data.image_operations import Operations
from megatron_v2pe.v2pe.position_ids import Ticks

IGNORE_INDEX = -100
"""The label of a token that nothing is learned from."""


@dataclass(frozen=True)
class SampleId:
    """Where a sample comes from, for logs and errors."""

    dataset: str
    """Name of the data set in the data list."""
    line: int
    """Line of the annotation file, counted from 1."""
    file: str
    """Path of the annotation file."""

    def __str__(self) -> str:
        """Return `file:line (dataset)`."""
        return f"{self.file}:{self.line} ({self.dataset})"


@dataclass(frozen=True)
class Sample:
    """One annotated conversation, read but not yet interpreted; without images it is a text or shows a video."""

    id: SampleId
    conversations: tuple[tuple[str, str], ...]
    """(role, text) of each turn; roles are `human` and `gpt` by turns, a human first, perhaps `system` before it."""
    images: tuple[str, ...] = ()
    """Paths of the images, in the order the text refers to them."""
    multi_image: bool = False
    """Whether the annotation gives a list of images; the text then says itself where each belongs."""
    video: str | None = None
    """Path of a video file or of a folder of frames."""
    clip: tuple[float, float] | None = None
    """The part of the video that is used, start and end in seconds."""
    unknown: tuple[str, ...] = ()
    """Fields of the line that no code reads and that are not usual either."""


@dataclass(frozen=True)
class Picture:
    """One image that will be read and cut into tiles: everything about it but its pixels."""

    path: str
    """An image file, or a video file."""
    grid: tuple[int, int] | None
    """Columns and rows of tiles; None: the whole image as one tile."""
    thumbnail: bool = False
    """Whether the whole image follows as a last tile; only where the grid has several tiles."""
    frame: int | None = None
    """Number of the frame in a video file or animation; None: a still image."""
    file: int | None = None
    """Number of the file in an indexed data set; None: `path` is read as it is found."""
    operations: Operations = ()
    """What is done to the image on its way to tiles; the stages `opened` and `rgb` do not concern frames of videos."""

    @property
    def num_tiles(self) -> int:
        """Return how many tiles this image becomes."""
        return 1 if self.grid is None else self.grid[0] * self.grid[1] + int(self.thumbnail)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Return the numbers of tiles of the images it stands for, which is one image."""
        return (self.num_tiles,)


@dataclass(frozen=True)
class Clip:
    """A part of a video, of which some frames are drawn anew in every epoch; how many is settled."""

    path: str
    """A video file, or a folder of frames (ends with `/`)."""
    frames: int
    """How many frames are drawn; each is one tile."""
    first: int
    """Number of the first frame of the part."""
    last: int
    """Number of the frame behind the last of the part."""
    file: int | None = None
    """Number of the file in an indexed data set, as for a picture."""
    operations: Operations = ()
    """What is done to each frame; the stages `opened` and `rgb` concern folders of frames and GIFs."""

    @property
    def tiles(self) -> tuple[int, ...]:
        """Return the numbers of tiles of the images it stands for: one for each frame drawn."""
        return (1,) * self.frames


@dataclass(frozen=True)
class CompactText:
    """A conversation as tokens, each image as a single one: the part that is the same for all tiles and strides."""

    ids: np.ndarray
    """int32 [C], C tokens."""
    supervised: np.ndarray
    """int32 [n, 2]: first and last + 1 of each range of `ids` that a model learns to write; in order, apart."""
    images: np.ndarray
    """int64 [images]: the index in `ids` of each image."""


@dataclass(frozen=True)
class EncodedSample:
    """The part of a sample that is the same in every epoch and under every stride; an indexed data set stores it."""

    text: CompactText
    media: tuple[Picture | Clip, ...]
    """Its images, or its video."""
    num_tokens: int
    """Number of tokens once every image has the tokens of all its tiles."""
    source: SampleId

    @property
    def num_tiles(self) -> int:
        """Return the number of tiles of all images."""
        return sum(sum(item.tiles) for item in self.media)


@dataclass(frozen=True)
class TrainingDocument:
    """One sample as one pass over the data sees it, ready to be packed; its tiles are still on disk."""

    input_ids: Tensor
    """int64 [L]."""
    labels: Tensor
    """int64 [L], in place: label t is token t, or -100 where nothing is learned."""
    position_ticks: Ticks
    """Positions of the L tokens."""
    images: tuple[tuple[int, int], ...]
    """For each image: the index of its first image token, and its number of tiles."""
    pictures: tuple[Picture, ...]
    """For each image: where its tiles come from."""
    source: SampleId
    key: tuple[int, ...] = ()
    """Seed, epoch and number of the sample in the epoch: random draws are keyed by them."""

    @property
    def num_tokens(self) -> int:
        """Return the length in tokens."""
        return self.input_ids.shape[0]

    @property
    def num_tiles(self) -> int:
        """Return the number of tiles of all images."""
        return sum(picture.num_tiles for picture in self.pictures)


@dataclass(frozen=True)
class Batch:
    """One micro-batch: documents packed one after the other, without padding."""

    input_ids: Tensor
    """int64 [S]."""
    labels: Tensor
    """int64 [S], shifted: label t is what token t predicts, never a token of another document; -100 for nothing."""
    loss_weights: Tensor
    """float32 [S], shifted like the labels, 0 where a label is -100."""
    position_ticks: Ticks
    """Positions of the S tokens, each document's from 0."""
    seqlens: tuple[int, ...]
    """Length of each document; their sum is S."""
    tiles: Tensor
    """uint8 [T, H, W, 3], in the order of their image tokens: all tiles of the pack where it was read, on other ranks
    those that the rank encodes."""
    num_tiles: tuple[int, ...]
    """Tiles of each image of the pack, in order."""
    sources: tuple[SampleId, ...]
    """Where each document comes from."""
    unreadable: tuple[tuple[SampleId, str], ...] = ()
    """Samples of the pack that had to be left out, and why; known to the rank that reads them."""
    document_tiles: tuple[int, ...] = ()
    """Tiles of each document; known to the rank that reads them."""
    images: tuple[tuple[str, ...], ...] = ()
    """For each document the files of its images or its video, each once; known to the rank that reads them."""
