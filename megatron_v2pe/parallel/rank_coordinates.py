"""Where this rank stands among those that work on the same micro-batch, as plain numbers.

Process groups stay in `topology.py`; what is computed from ranks (who encodes which tiles, which hidden states are
assembled where) is computed from these numbers, and can be tested without processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_v2pe.parallel.zigzag import ZigzagLayout


@dataclass(frozen=True)
class RankCoordinates:
    """This rank's coordinates and the two named ways of spreading vision work."""

    context_parallel_rank: int = 0
    context_parallel_size: int = 1
    tensor_model_parallel_rank: int = 0
    tensor_model_parallel_size: int = 1
    sequence_parallel: bool = False
    vision_parallel: str = "tensor"
    """`tensor`: tower sharded over tensor-parallel ranks, tiles spread over context-parallel ranks; `replicated`: a
    whole tower on every rank, tiles spread over both."""

    @property
    def replicated_vision(self) -> bool:
        """Whether tensor-parallel ranks hold whole towers and work on tiles of their own."""
        return self.vision_parallel == "replicated" and self.tensor_model_parallel_size > 1

    @property
    def split_rows(self) -> bool:
        """Whether text and images are put together on slices, one per tensor-parallel rank, of a rank's tokens.

        So it is under sequence parallelism; and with replicated towers, so that every feature is sent to one rank.
        """
        return (self.sequence_parallel or self.replicated_vision) and self.tensor_model_parallel_size > 1

    @property
    def num_encoders(self) -> int:
        """Towers that share the tiles of a micro-batch (one sharded over tensor-parallel ranks counts once)."""
        return self.context_parallel_size * (self.tensor_model_parallel_size if self.replicated_vision else 1)

    @property
    def encoder(self) -> int:
        """Number of the tower this rank is, or is a part of."""
        if not self.replicated_vision:
            return self.context_parallel_rank
        return self.context_parallel_rank * self.tensor_model_parallel_size + self.tensor_model_parallel_rank

    def neighbour(self, member: int) -> RankCoordinates:
        """Return the place of a member of the tensor x context parallel group, tensor-parallel ranks first."""
        context, tensor = divmod(member, self.tensor_model_parallel_size)
        return replace(self, context_parallel_rank=context, tensor_model_parallel_rank=tensor)

    def layout(self, lengths: tuple[int, ...]) -> ZigzagLayout:
        """Return the order of a pack of documents of these lengths."""
        return ZigzagLayout(lengths, self.context_parallel_size, self.tensor_model_parallel_size)

    def tiles(self, num_tiles: int) -> range:
        """Return which of a micro-batch's tiles this rank encodes."""
        return tiles_of(self.encoder, self.num_encoders, num_tiles)


def tiles_of(encoder: int, num_encoders: int, num_tiles: int) -> range:
    """Deal out tiles in runs as equal as can be: all tiles cost the same."""
    return range(encoder * num_tiles // num_encoders, (encoder + 1) * num_tiles // num_encoders)
