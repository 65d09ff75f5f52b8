"""From an annotation line to a document: images measured, text tokenised, positions computed; no pixels yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.pictures import Key, TilingOptions, plan_images, plan_video
from megatron_v2pe.data.sources import Dataset
from megatron_v2pe.data.text import PLACEHOLDER, encode_conversation, with_placeholder
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Document, Picture, Sample
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.position_ids import find_images, position_ticks
from megatron_v2pe.v2pe.stride import StridePolicy

VIDEO_PLACEHOLDER = "<video>"


@dataclass(frozen=True)
class ModelFacts:
    """What the data pipeline has to know of the checkpoint."""

    tile_size: int
    """Side of a tile in pixels."""
    tokens_per_tile: int
    """Image tokens one tile becomes."""


@dataclass(frozen=True)
class DocumentEncoder:
    """Settings under which samples become documents. A document depends on them, its line, epoch and number alone."""

    config: DataConfig
    tokenizer: Tokenizer
    facts: ModelFacts
    policy: StridePolicy
    seed: int

    @cached_property
    def denominator(self) -> int:
        """The position lattice's."""
        return self.policy.denominator(self.facts.tokens_per_tile)

    def encode(self, dataset: Dataset, line: int, epoch: int, number: int) -> Document:
        """Encode one sample.

        Args:
            dataset: where it comes from.
            line: its index in the data set.
            epoch: pass over the data.
            number: the sample's number in the epoch; draws of strides, frames and augmentation are keyed by it.

        Raises:
            DataError: the sample cannot be used, and why.
        """
        sample = dataset.read(line)
        pictures, turns = self._pictures(sample, dataset, (self.seed, epoch, number))
        num_tiles = [picture.num_tiles for picture in pictures]
        self._check_tiles(sum(num_tiles))
        template, per_tile = get_template(self.config.template), self.facts.tokens_per_tile
        ids, labels = encode_conversation(self.tokenizer, template, turns, num_tiles, per_tile)
        self._check_length(len(ids))
        tokens = self.tokenizer
        images = find_images(ids, num_tiles, per_tile, tokens.img_start_id, tokens.img_end_id, tokens.img_context_id)
        strides = self.policy.draw(len(images), per_tile, epoch=epoch, sample=number)
        ticks, _ = position_ticks(len(ids), images, strides, per_tile, self.denominator)
        return Document(ids, labels, ticks, tuple(images), tuple(pictures), sample.id)

    def _pictures(self, sample: Sample, dataset: Dataset, key: Key) -> tuple[list[Picture], list[tuple[str, str]]]:
        """The images of a sample, and its turns with one placeholder for each."""
        turns = list(sample.conversations)
        options = self.tiling(dataset)
        if sample.images:
            if not sample.multi_image:
                turns = with_placeholder(turns)
            return plan_images(sample.images, options, key), turns
        if sample.video is not None:
            shortest, longest = self.config.min_num_frame, self.config.max_num_frame
            pictures = plan_video(sample.video, sample.clip, shortest, longest, options, key)
            return pictures, _with_frames(turns, len(pictures))
        return [], turns

    def tiling(self, dataset: Dataset | None = None) -> TilingOptions:
        """Return how images become tiles, with a data set's own settings over the run's."""
        config = self.config
        dynamic, max_num, augment = config.dynamic_image_size, config.max_dynamic_patch, False
        if dataset is not None:
            dynamic = dynamic if dataset.dynamic_image_size is None else dataset.dynamic_image_size
            max_num, augment = dataset.max_dynamic_patch or max_num, dataset.data_augment
        return TilingOptions(
            tile_size=self.facts.tile_size,
            dynamic=dynamic,
            min_num=min(config.min_dynamic_patch, max_num),
            max_num=max_num,
            share_max_num=config.dynamic_max_patch,
            thumbnail=config.use_thumbnail,
            pad_to_square=config.pad2square,
            augment=augment,
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
    (role, text), *others = with_placeholder(turns, VIDEO_PLACEHOLDER)
    names = "\n".join(f"Frame{number}:{PLACEHOLDER}" for number in range(1, frames + 1))
    newline = f"{VIDEO_PLACEHOLDER}\n"
    return [(role, text.replace(newline if newline in text else VIDEO_PLACEHOLDER, names, 1)), *others]
