"""Which image features go where: from the rank that encoded a tile to the ranks that hold its tokens.

Every tile is encoded once. Its features are sent, by one all-to-all, only to the rank on whose tokens they stand, and
their gradients come back the same way; a rank without tiles takes part with nothing to send.

Three layouts, drawn for 2 context-parallel (c) x 2 tensor-parallel (t) ranks. A column is the rows of hidden states a
rank puts features on, a letter a feature; members of one exchange are joined by dashes:

    towers sharded over t,      towers sharded over t,        towers replicated: every
    rows whole                  rows split over t             rank has a tower and a slice

    c0t0 ---- c1t0              c0t0 ---- c1t0                c0t0 -- c0t1 -- c1t0 -- c1t1
    a b c     d                 a         d                   a       b c     d       .
    c0t1 ---- c1t1              c0t1 ---- c1t1
    a b c     d                 b c       .

In the first two a tower's ranks all know its features and the exchanges of t0 and t1 run beside each other: in the
first both carry everything, in the second each carries what stands on its own slice.
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

        Its members are the context-parallel ranks where towers are sharded, all context x tensor parallel ranks where
        they are replicated (the drawing above).

        Args:
            image_tokens: int64 [n] on the host, indices into the unpadded pack of all image tokens, in order.
            num_tiles: tiles of the pack.
            tokens_per_tile: image tokens per tile.
            layout: which context-parallel rank holds which tokens.
            coordinates: where this rank stands.

        Raises:
            LayoutError: image tokens and tiles differ in number; both are printed.
        """
        if len(image_tokens) != num_tiles * tokens_per_tile:
            raise LayoutError(
                f"{len(image_tokens)} image tokens in the input, but {num_tiles} tiles of {tokens_per_tile} tokens "
                f"give {num_tiles * tokens_per_tile} features"
            )
        context, row = layout.find(image_tokens)  # who holds the token of each feature, on which of its rows
        carried = torch.ones_like(row, dtype=torch.bool)
        holder = context  # number of the member on whose rows each feature stands
        if coordinates.split_rows:
            rows_per_slice = layout.num_local_tokens // coordinates.tensor_model_parallel_size
            tensor, row = row // rows_per_slice, row % rows_per_slice
            if coordinates.replicated_vision:
                holder = context * coordinates.tensor_model_parallel_size + tensor
            else:
                carried = tensor == coordinates.tensor_model_parallel_rank
        me, members = coordinates.encoder, coordinates.num_encoders
        encoder = _encoder_of_each(members, num_tiles, tokens_per_tile)
        sent = ((encoder == me) & carried).nonzero().squeeze(1)
        sent = sent[holder[sent].argsort(stable=True)]  # by member, and for each in the order of tiles
        received = ((holder == me) & carried).nonzero().squeeze(1)  # in the order of tiles, and so of their encoders
        return cls(
            send_rows=sent - coordinates.tiles(num_tiles).start * tokens_per_tile,
            send_counts=tuple(torch.bincount(holder[sent], minlength=members).tolist()),
            receive_rows=row[received],
            receive_counts=tuple(torch.bincount(encoder[received], minlength=members).tolist()),
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


def _encoder_of_each(members: int, num_tiles: int, tokens_per_tile: int) -> Tensor:
    """Return for every feature of a pack which member encodes it: int64 [tiles x tokens per tile]."""
    encoder = torch.empty(num_tiles * tokens_per_tile, dtype=torch.int64)
    for member in range(members):
        tiles = tiles_of(member, members, num_tiles)
        encoder[tiles.start * tokens_per_tile : tiles.stop * tokens_per_tile] = member
    return encoder


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
