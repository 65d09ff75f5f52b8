"""What a pipeline stage computes again in its backward pass, layer by layer: one plan per stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecomputePlan:
    """Counts of layers of one stage; every rank of the stage has the same.

    The first decoder layers are recomputed and the last kept whole: backward begins with the last, so that what they
    held is free again when the first recomputed layer needs room for its activations.
    """

    decoder_layers: int
    """Decoder layers computed again, the first ones of the stage; the others keep all their activations."""
    attention_kept: int = 0
    """How many of those layers keep attention's result and run no attention again: the last ones."""
    tower_layers: int = 0
    """Layers of the vision tower computed again, the first ones; the others keep all their activations."""
    tower_tiles: int = 0
    """Tiles encoded at a time, of which only pixels are kept for the backward pass, see `tile_recompute`; 0: all tiles
    at once, their layers kept as `tower_layers` says."""

    def __post_init__(self) -> None:
        """Check the counts against one another."""
        assert min(self.decoder_layers, self.attention_kept, self.tower_layers, self.tower_tiles) >= 0, self
        assert self.attention_kept <= self.decoder_layers, self

    def keeps_attention(self, layers: int) -> list[bool]:
        """Tell of each of a stage's `layers` decoder layers whether its recompute finds attention's result kept."""
        first = self.decoder_layers - self.attention_kept
        return [first <= layer < self.decoder_layers for layer in range(layers)]
