"""What a builder hands to the writer: the lines and images of one sample, and its numbers for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_v2pe.workshop.long_context.made_images import Shown
from megatron_v2pe.workshop.long_context.pipeline import Encoding

TRAINING_LINES = "annotation.jsonl"
"""File of the lines a training run reads."""


@dataclass(frozen=True)
class Built:
    """One sample as it was made: lines of its files, images, category and lengths."""

    lines: Mapping[str, Mapping[str, Any]]
    """File in the output folder -> the object that is one line of it."""
    images: tuple[Shown, ...]
    """All of its images, in order."""
    category: str
    target: int
    """Tokens asked for."""
    tokens: int
    """Tokens it has, as training counts them."""
    tiles: int
    depths: tuple[float, ...]
    """Share of the tokens before each thing asked about."""


class Builder(Protocol):
    """Makes samples, each a pure function of its number."""

    encoding: Encoding

    def build(self, number: int) -> Built:
        """Make a sample.

        Raises:
            DataError: it cannot be made to the length asked for, or an image cannot be read.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples, for the report."""
        ...

    def left_out(self) -> dict[str, int]:
        """Return what of the input was not used, by cause."""
        ...
