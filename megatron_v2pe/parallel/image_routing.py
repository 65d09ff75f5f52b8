"""Which image features go where: from the rank that encoded a tile to the ranks that hold its tokens.

Every tile is encoded once. Its features are sent, by one all-to-all, only to the rank on whose tokens they stand, and
their gradients come back the same way; a rank without tiles takes part with nothing to send.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.errors import LayoutError
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates, tiles_of
from megatron_v2pe.parallel.zigzag import ZigzagLayout


@dataclass(frozen=True)
class ImageRouting:
    """One micro-batch's exchange of features, as this rank sees it."""

    send_rows: Tensor
    """int64 [n]: rows of this rank's features [own tiles x tokens per tile, hidden], in the order they are sent."""
    send_counts: tuple[int, ...]
    """How many of them go to each member of the exchange."""
    receive_rows: Tensor
    """int64 [m]: rows of this rank's hidden states on which the features that arrive stand."""
    receive_counts: tuple[int, ...]
    """How many come from each member."""

    @classmethod
    def plan(
        cls,
        image_tokens: Tensor,
        num_tiles: int,
        tokens_per_tile: int,
        layout: ZigzagLayout,
        coordinates: RankCoordinates,
    ) -> ImageRouting:
        """Work out the exchange of a micro-batch; every rank does so for itself, from the same numbers.

        The members are the context-parallel ranks where towers are sharded (each tensor-parallel rank then brings the
        features of its own rows), all tensor x context parallel ranks where they are replicated.

        Args:
            image_tokens: int64 [n] on the host, indices into the unpadded pack of all image tokens, in order.
            num_tiles: tiles of the pack.
            tokens_per_tile: image tokens per tile.
            layout: who holds which tokens.
            coordinates: where this rank stands.

        Raises:
            LayoutError: image tokens and tiles differ in number; both are printed.
        """
        if len(image_tokens) != num_tiles * tokens_per_tile:
            raise LayoutError(
                f"{len(image_tokens)} image tokens in the input, but {num_tiles} tiles of {tokens_per_tile} tokens "
                f"give {num_tiles * tokens_per_tile} features"
            )
        context, row = layout.find(image_tokens)
        tensor = torch.zeros_like(row)
        if coordinates.split_rows:
            rows_per_slice = layout.num_local_tokens // coordinates.tensor_model_parallel_size
            tensor, row = row // rows_per_slice, row % rows_per_slice
        me, members, target = coordinates.context_parallel_rank, coordinates.context_parallel_size, context
        mine = torch.ones_like(row, dtype=torch.bool)
        if coordinates.replicated_vision:
            me, members = coordinates.encoder, coordinates.num_encoders
            target = context * coordinates.tensor_model_parallel_size + tensor
        elif coordinates.split_rows:
            mine = tensor == coordinates.tensor_model_parallel_rank
        source = torch.empty_like(row)
        for encoder in range(members):
            tiles = tiles_of(encoder, members, num_tiles)
            source[tiles.start * tokens_per_tile : tiles.stop * tokens_per_tile] = encoder
        sent = ((source == me) & mine).nonzero().squeeze(1)
        sent = sent[target[sent].argsort(stable=True)]
        received = ((target == me) & mine).nonzero().squeeze(1)  # in the order of tiles, and so of their sources
        return cls(
            send_rows=sent - coordinates.tiles(num_tiles).start * tokens_per_tile,
            send_counts=tuple(torch.bincount(target[sent], minlength=members).tolist()),
            receive_rows=row[received],
            receive_counts=tuple(torch.bincount(source[received], minlength=members).tolist()),
        )

    def to(self, device: torch.device) -> ImageRouting:
        """Return a copy with its tensors on a device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> ImageRouting:
        """Return a copy whose every tensor is what `change` made of it."""
        return replace(self, send_rows=change(self.send_rows), receive_rows=change(self.receive_rows))

    def deliver(self, features: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Send this rank's features to where they stand.

        Args:
            features: [own tiles x tokens per tile, hidden].
            group: the members of the exchange.

        Returns:
            [m, hidden]: the features that belong on `receive_rows`.
        """
        leaving = features.index_select(0, self.send_rows)
        return leaving if group.size() == 1 else _Exchange.apply(leaving, self.send_counts, self.receive_counts, group)


class _Exchange(torch.autograd.Function):
    """Uneven all-to-all of rows; gradients travel the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _exchanged(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def _exchanged(rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows.contiguous(), list(received), list(sent), group=group)
    return arrived
