"""What a pipeline stage takes of one packed micro-batch: this rank's tokens, its tiles, and what goes where.

The pack is cut here and nowhere else, before anything is embedded: a rank never holds hidden states of tokens that are
not its own. Labels arrive shifted, so that the cut separates no token from what it predicts. It is cut on the host:
what depends on values (which tokens are images, which are supervised) is known there before anything is moved, and the
device is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from megatron_v2pe.errors import LayoutError
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.head import Targets
from megatron_v2pe.parallel.image_routing import ImageRouting
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates
from megatron_v2pe.parallel.zigzag import ZigzagLayout

PADDING_ID = 0
IGNORE_INDEX = -100


@dataclass(frozen=True)
class MicroBatch:
    """This rank's share of a pack; S is `layout.num_local_tokens`."""

    input_ids: Tensor
    """int64 [S]."""
    position_ticks: Tensor
    """int64 [S], positions times the lattice's denominator."""
    layout: ZigzagLayout
    """Documents of the whole pack, and who holds which of their tokens."""
    last_ticks: tuple[int, ...]
    """Largest tick of each whole document, 0 for a document of padding."""
    pixel_values: Tensor | None = None
    """[own tiles, 3, size, size], normalised, in the compute type; None without tiles of its own. Until a batch is used
    they may be bytes, uint8 [own tiles, size, size, 3]: a quarter of what travels."""
    routing: ImageRouting | None = None
    """Where image features go; None in a pack without images, and off the first pipeline stage."""
    targets: Targets | None = None
    """Supervised rows among this rank's tokens; None where logits are asked for."""
    drop_path: DropPathKey | None = None
    """Names the tower's stochastic-depth draws."""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        """Return a copy whose every tensor is what `change` made of it: moved to a device, say."""
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ticks=change(self.position_ticks),
            pixel_values=None if self.pixel_values is None else change(self.pixel_values),
            routing=None if self.routing is None else self.routing.mapped(change),
            targets=None if self.targets is None else self.targets.mapped(change),
        )


def cut_pack(
    input_ids: Tensor,
    position_ticks: Tensor,
    seqlens: Sequence[int],
    coordinates: RankCoordinates,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    image_token_id: int,
    num_tiles: int = 0,
    tokens_per_tile: int,
    pixel_values: Tensor | None = None,
    drop_path: DropPathKey | None = None,
    first_stage: bool = True,
) -> MicroBatch:
    """Cut a pack of S tokens for this rank; tensors lie where they are given, on the host in every step of training.

    Args:
        input_ids: int64 [S], documents one behind the other, without padding.
        position_ticks: int64 [S].
        seqlens: document lengths, Python integers summing to S.
        coordinates: where this rank stands.
        labels: int64 [S], shifted, -100 where nothing is learned; None: no targets, the model returns logits.
        weights: [S], shifted like the labels.
        image_token_id: id of `<IMG_CONTEXT>`.
        num_tiles: tiles of the whole pack.
        tokens_per_tile: image tokens per tile.
        pixel_values: the tiles this rank encodes, `coordinates.tiles(num_tiles)`, normalised or as bytes.
        drop_path: names the draws of the pack.
        first_stage: whether this rank embeds and encodes.

    Raises:
        LayoutError: lengths, positions, labels, image tokens or tiles that do not agree; both numbers are printed.
    """
    layout = coordinates.layout(tuple(seqlens))
    rank, device = coordinates.context_parallel_rank, input_ids.device
    tiles = coordinates.tiles(num_tiles)
    if pixel_values is not None and first_stage and pixel_values.shape[0] != len(tiles):
        raise LayoutError(f"{pixel_values.shape[0]} tiles were given, this rank encodes {len(tiles)} of {num_tiles}")
    local_ids, local_ticks = layout.shard(input_ids, rank, PADDING_ID), layout.shard(position_ticks, rank, 0)
    routing = None
    if first_stage:
        image_tokens = (input_ids == image_token_id).nonzero().squeeze(1).cpu()
        plan = ImageRouting.plan(image_tokens, num_tiles, tokens_per_tile, layout, coordinates)
        routing = plan.to(device) if num_tiles else None
    targets = None
    if labels is not None and weights is not None:
        slices = coordinates.tensor_model_parallel_size if coordinates.sequence_parallel else 1
        shares = layout.shard(labels, rank, IGNORE_INDEX), layout.shard(weights, rank, 0.0)
        targets = Targets.from_labels(*shares, IGNORE_INDEX, slices)
    if drop_path is not None:
        drop_path = replace(drop_path, first_tile=tiles.start, num_tiles=num_tiles)
    ends = [int(part.max()) for part in position_ticks.split(list(seqlens))] if len(seqlens) else []
    return MicroBatch(
        input_ids=local_ids,
        position_ticks=local_ticks,
        layout=layout,
        last_ticks=(*ends, *[0] * (len(layout.seqlens) - len(ends))),
        pixel_values=pixel_values if pixel_values is not None and pixel_values.shape[0] else None,
        routing=routing,
        targets=targets,
        drop_path=drop_path,
    )
