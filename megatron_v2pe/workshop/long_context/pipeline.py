"""Where long-context construction meets the training pipeline: what texts and images become, and annotations read.

Nothing else in this package imports from the rest of `data`, so that a change there is followed here alone. Every count
of tokens and tiles comes from the functions that training itself calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.conversation import SYSTEM, get_template
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.image_files import image_size, open_image
from megatron_v2pe.data.image_operations import AS_PUBLISHED
from megatron_v2pe.data.image_plan import TilingOptions, plan_images
from megatron_v2pe.data.tokenize import PLACEHOLDER, encode_conversation
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Sample
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.printable import printable

__all__ = [
    "PLACEHOLDER",
    "SYSTEM",
    "Dataset",
    "Encoding",
    "Sample",
    "Turns",
    "image_size",
    "open_datasets",
    "open_image",
]

Turns = Sequence[tuple[str, str]]
"""(role, text) with roles `human` and `gpt` in turn."""


@dataclass(frozen=True)
class Encoding:
    """How a conversation becomes tokens: the tokenizer and the settings of a training run that decide its length."""

    tokenizer: Tokenizer
    template: str
    """Conversation template (`data.template`)."""
    tile_size: int
    """Side of a tile in pixels."""
    tokens_per_tile: int
    """Image tokens one tile becomes."""
    max_dynamic_patch: int = 12
    """Most tiles of an image, thumbnail not counted."""
    min_dynamic_patch: int = 1
    """Fewest tiles of an image, thumbnail not counted."""
    dynamic_image_size: bool = True
    """Cut an image into as many tiles as its shape asks for."""
    use_thumbnail: bool = True
    """Add the whole image as a last tile where it was cut into several."""

    def __post_init__(self) -> None:
        """Check settings and tokenizer.

        Raises:
            ConfigError: an unknown template, numbers of tiles out of order, or a tokenizer without image tokens.
        """
        get_template(self.template)
        if not 1 <= self.min_dynamic_patch <= self.max_dynamic_patch:
            raise ConfigError(
                f"min_dynamic_patch {self.min_dynamic_patch}, max_dynamic_patch {self.max_dynamic_patch}: "
                "expected 1 <= min <= max"
            )
        if missing := self.tokenizer.missing():
            raise ConfigError(f"{self.tokenizer.model_file}: the tokenizer lacks {', '.join(missing)}")

    def tiles(self, size: tuple[int, int]) -> int:
        """Return the tiles of an image of this width and height in pixels."""
        options = TilingOptions(
            tile_size=self.tile_size,
            dynamic=self.dynamic_image_size,
            min_num=self.min_dynamic_patch,
            max_num=self.max_dynamic_patch,
            thumbnail=self.use_thumbnail,
        )
        [picture] = plan_images([""], options, lambda _: size)
        return picture.num_tiles

    def messages(self, turns: Turns) -> list[str]:
        """Return the turns as the template writes them, one text each; images still as placeholders."""
        return [message.text for message in get_template(self.template).render(turns)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self.tokenizer.encode(text)

    def length(self, turns: Turns, tiles: Sequence[int]) -> int:
        """Return the tokens training makes of a conversation, by encoding it."""
        ids, _ = encode_conversation(self.tokenizer, get_template(self.template), turns, tiles, self.tokens_per_tile)
        return len(ids)

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """Words no text may hold, for they would be taken for a special token or a placeholder."""
        return (*self.tokenizer.special, PLACEHOLDER, "<video>")

    def spells_reserved(self, text: str) -> bool:
        """Whether a text holds one of them."""
        return any(word in text for word in self.reserved)


def open_datasets(meta_path: Path | None, annotation: Path | None, root: str = "") -> list[Dataset]:
    """Open the annotations to build from: those of a data list, or one file.

    Raises:
        ConfigError: both or neither are given, a file is missing, or images are not to be opened as published.
    """
    if (meta_path is None) == (annotation is None):
        raise ConfigError("give either --meta-path or --annotation")
    if meta_path is not None:
        datasets = read_data_list(meta_path)
        for dataset in datasets:
            if dataset.opening != AS_PUBLISHED:
                raise ConfigError(
                    f"{printable(meta_path)}: dataset {dataset.name!r}: {dataset.opening}: long samples are made of "
                    f"images opened with {AS_PUBLISHED}; take the two fields out, or name the file with --annotation"
                )
        return datasets
    assert annotation is not None
    if not annotation.exists():
        raise ConfigError(f"{printable(annotation)}: no such annotation file")
    check_regular(annotation, ConfigError)
    return [Dataset(annotation.stem, str(annotation), root)]
