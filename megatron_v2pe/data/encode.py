"""From an annotation line to a document: images measured, text tokenised, positions computed; no pixels yet.

In two steps: `encode` does what is the same in every epoch and is what an indexed data set stores; `draw` adds what a
run decides (strides) and what changes from epoch to epoch (frames of videos, augmentation).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.image_files import image_size
from megatron_v2pe.data.image_operations import operations_of
from megatron_v2pe.data.image_plan import ClipOf, SizeOf, TilingOptions, draw_pictures, plan_images, plan_video
from megatron_v2pe.data.tokenize import PLACEHOLDER, compact_conversation, expand, image_starts, with_placeholder
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Clip, EncodedSample, Picture, Sample, TrainingDocument
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.position_ids import position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy

VIDEO_PLACEHOLDER = "<video>"


@dataclass(frozen=True)
class ModelFacts:
    """The facts about the checkpoint that the data pipeline has to know."""

    tile_size: int
    """Side of a tile in pixels."""
    tokens_per_tile: int
    """Image tokens one tile becomes."""


@dataclass(frozen=True)
class DocumentEncoder:
    """Makes documents of samples. A document depends on them, its line, epoch and number, and nothing else."""

    config: DataConfig
    tokenizer: Tokenizer
    facts: ModelFacts
    policy: StridePolicy
    seed: int

    @cached_property
    def denominator(self) -> int:
        """Return the denominator of the position lattice."""
        return self.policy.denominator(self.facts.tokens_per_tile)

    def document(self, dataset: Dataset, line: int, epoch: int, number: int) -> TrainingDocument:
        """Encode one sample for one pass over it: `encode` and `draw`."""
        return self.draw(self.encode(dataset, line), epoch, number)

    def encode(self, dataset: Dataset, line: int, size_of: SizeOf = image_size) -> EncodedSample:
        """Encode what is the same in every epoch: tokens, and how images are tiled.

        Args:
            dataset: where the sample comes from.
            line: its index in the data set.
            size_of: gives width and height of the image of a path.

        Raises:
            DataError: the sample cannot be used, and why.
        """
        return self.encode_sample(dataset.read(line), dataset, size_of)

    def encode_sample(
        self, sample: Sample, dataset: Dataset, size_of: SizeOf = image_size, clip_of: ClipOf = plan_video
    ) -> EncodedSample:
        """Encode a sample that has been read already.

        Args:
            sample: a sample of `dataset`.
            dataset: where it comes from.
            size_of: gives width and height of the image of a path.
            clip_of: measures its video.

        Raises:
            DataError: see `encode`.
        """
        media, turns = self._media(sample, dataset, size_of, clip_of)
        tiles = [count for item in media for count in item.tiles]
        self._check_tiles(sum(tiles))
        text = compact_conversation(self.tokenizer, get_template(self.config.template_name), turns, len(tiles))
        num_tokens = len(text.ids) + sum(tiles) * self.facts.tokens_per_tile - len(tiles)
        self._check_length(num_tokens)
        return EncodedSample(text, tuple(media), num_tokens, sample.id)

    def draw(self, sample: EncodedSample, epoch: int, number: int) -> TrainingDocument:
        """Settle one pass over a sample: strides of its images, frames of its video, keys of augmentation.

        Args:
            sample: what `encode` returned.
            epoch: number of the pass over the data.
            number: the sample's number in the epoch; draws are keyed by it.

        Raises:
            DataError: a folder of frames has changed.
        """
        key, per_tile = (self.seed, epoch, number), self.facts.tokens_per_tile
        pictures = draw_pictures(sample.media, key)
        tiles = [picture.num_tiles for picture in pictures]
        ids, labels = expand(sample.text, tiles, per_tile)
        images = list(zip(image_starts(sample.text, tiles, per_tile), tiles, strict=True))
        strides = self.policy.draw(len(images), per_tile, epoch=epoch, sample=number)
        ticks = position_ticks(len(ids), images, strides, per_tile, self.denominator)
        return TrainingDocument(ids, labels, ticks, tuple(images), pictures, sample.source, key)

    def _media(
        self, sample: Sample, dataset: Dataset, size_of: SizeOf, clip_of: ClipOf
    ) -> tuple[list[Picture | Clip], list[tuple[str, str]]]:
        """Return the images or the video of a sample, and its turns with one placeholder for each image or frame."""
        turns = list(sample.conversations)
        options = self.tiling(dataset)
        if sample.images:
            if not sample.multi_image:
                turns = with_placeholder(turns)
            return [*plan_images(sample.images, options, size_of)], turns
        if sample.video is not None:
            shortest, longest = self.config.min_num_frame, self.config.max_num_frame
            key = (self.seed, sample.id.dataset, sample.id.line)
            clip = clip_of(sample.video, sample.clip, shortest, longest, options, key)
            return [clip], _with_frames(turns, clip.frames)
        return [], turns

    def tiling(self, dataset: Dataset | None = None) -> TilingOptions:
        """Return how images become tiles, with a data set's own settings over the run's."""
        config = self.config
        dynamic, max_num = config.dynamic_image_size, config.max_dynamic_patch
        operations = operations_of(pad_to_square=config.pad2square)
        if dataset is not None:
            dynamic = dynamic if dataset.dynamic_image_size is None else dataset.dynamic_image_size
            max_num = dataset.max_dynamic_patch or max_num
            operations = operations_of(
                dataset.opening, config.pad2square, dataset.data_augment, dataset.image_operations
            )
        return TilingOptions(
            tile_size=self.facts.tile_size,
            dynamic=dynamic,
            min_num=min(config.min_dynamic_patch, max_num),
            max_num=max_num,
            share_max_num=config.dynamic_max_patch,
            thumbnail=config.use_thumbnail,
            operations=operations,
        )

    def _check_tiles(self, tiles: int) -> None:
        if tiles > self.config.num_images_expected:
            raise DataError(
                f"{tiles} tiles, data.num_images_expected allows {self.config.num_images_expected} in a pack"
            )

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.max_seq_length:
            raise DataError(f"{tokens} tokens, longer than data.max_seq_length {self.config.max_seq_length}")


def _with_frames(turns: list[tuple[str, str]], frames: int) -> list[tuple[str, str]]:
    """Name the frames where the video stands. As the reference does, no newline comes between them and the question."""
    if images := sum(text.count(PLACEHOLDER) for _, text in turns):
        raise DataError(
            f"{images} {PLACEHOLDER} placeholders in the conversation, but the line names a video: write "
            f"{VIDEO_PLACEHOLDER} where it belongs"
        )
    turns = with_placeholder(turns, VIDEO_PLACEHOLDER)
    if (found := sum(text.count(VIDEO_PLACEHOLDER) for _, text in turns)) != 1:
        raise DataError(f"{found} {VIDEO_PLACEHOLDER} placeholders in the conversation, but one video")
    names = "\n".join(f"Frame{number}:{PLACEHOLDER}" for number in range(1, frames + 1))
    newline = f"{VIDEO_PLACEHOLDER}\n"
    return [(role, text.replace(newline if newline in text else VIDEO_PLACEHOLDER, names)) for role, text in turns]
