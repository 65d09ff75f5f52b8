"""What a pipeline stage takes of one packed micro-batch: this rank's tokens, its tiles, and what goes where.

The pack is cut here and nowhere else, before anything is embedded: a rank never holds hidden states of tokens that are
not its own. Labels arrive shifted, so that the cut separates no token from what it predicts. It is cut on the host:
what depends on values (which tokens are images, which are supervised) is known there before anything is moved, and the
device is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from megatron_v2pe.errors import LayoutError
from megatron_v2pe.kernels.tiles import normalise_tiles
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.head import Targets
from megatron_v2pe.parallel.image_routing import ImageRouting
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates
from megatron_v2pe.parallel.zigzag import ZigzagLayout
from megatron_v2pe.v2pe.position_ids import Ticks

PADDING_ID = 0
IGNORE_INDEX = -100


@dataclass(frozen=True)
class MicroBatch:
    """This rank's share of a pack; S is `layout.num_local_tokens`."""

    input_ids: Tensor
    """int64 [S]."""
    position_ticks: Ticks
    """Positions of the S tokens."""
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
        """Return a copy whose every tensor is what `change` made of it, for example a copy on a device."""
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ticks=self.position_ticks.mapped(change),
            pixel_values=None if self.pixel_values is None else change(self.pixel_values),
            routing=None if self.routing is None else self.routing.mapped(change),
            targets=None if self.targets is None else self.targets.mapped(change),
        )


@dataclass(frozen=True)
class DocumentSets:
    """The data set of each document of a pack, by number, so that the head can tell how much of the loss each gave."""

    of_documents: tuple[int, ...]
    """The number of the data set of each document."""
    count: int
    """How many data sets there are, the same in every pack and on every rank."""


class WholePack(Protocol):
    """A pack that has not been cut: a batch as it was read (`data.types.Batch`), or tensors in memory (`TensorPack`).

    S tokens, documents one behind the other, without padding.
    """

    @property
    def input_ids(self) -> Tensor:
        """Return the token ids, int64 [S]."""
        ...

    @property
    def position_ticks(self) -> Ticks:
        """Return the positions of the S tokens."""
        ...

    @property
    def seqlens(self) -> Sequence[int]:
        """Return the lengths of the documents, Python integers; their sum is S."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """Return the shifted labels, int64 [S], -100 where nothing is learned; None: the model returns logits."""
        ...

    @property
    def loss_weights(self) -> Tensor | None:
        """Return the weights of the loss, [S], shifted like the labels."""
        ...

    @property
    def num_tiles(self) -> Sequence[int]:
        """Return the numbers of tiles of all images of the pack."""
        ...

    @property
    def tiles(self) -> Tensor | None:
        """Return the tiles that this rank encodes (`RankCoordinates.tiles`), normalised or bytes; None: no tiles."""
        ...


@dataclass(frozen=True)
class TensorPack:
    """A whole pack of tensors in memory: of prompts, or made up for a test. The fields are those of `WholePack`."""

    input_ids: Tensor
    position_ticks: Ticks
    seqlens: Sequence[int]
    labels: Tensor | None = None
    loss_weights: Tensor | None = None
    num_tiles: Sequence[int] = ()
    tiles: Tensor | None = None


@dataclass(frozen=True)
class PackCutter:
    """Cuts packs for one rank. Tensors stay where they are, on the host in every step of training."""

    coordinates: RankCoordinates
    """Where the rank stands."""
    image_token_id: int
    """Id of `<IMG_CONTEXT>`."""
    tokens_per_tile: int
    """Image tokens of a tile."""
    first_stage: bool = True
    """Whether the rank embeds tokens and encodes tiles."""

    def cut(
        self, pack: WholePack, drop_path: DropPathKey | None = None, sets: DocumentSets | None = None
    ) -> MicroBatch:
        """Return this rank's share of a pack, its tiles as they were given.

        Args:
            pack: the whole pack, with the tiles this rank encodes.
            drop_path: names the stochastic-depth draws of the pack.
            sets: the data sets whose losses are to be added up apart, beside the loss.

        Raises:
            LayoutError: lengths, positions, labels, image tokens or tiles that do not agree; both numbers are printed.
        """
        layout = self.coordinates.layout(tuple(pack.seqlens))
        rank, num_tiles = self.coordinates.context_parallel_rank, sum(pack.num_tiles)
        own_tiles = self.coordinates.tiles(num_tiles)
        tiles = pack.tiles
        if tiles is not None and self.first_stage and tiles.shape[0] != len(own_tiles):
            raise LayoutError(f"{tiles.shape[0]} tiles were given, this rank encodes {len(own_tiles)} of {num_tiles}")
        if drop_path is not None:
            drop_path = replace(drop_path, first_tile=own_tiles.start, num_tiles=num_tiles)
        return MicroBatch(
            input_ids=layout.shard(pack.input_ids, rank, PADDING_ID),
            position_ticks=pack.position_ticks.mapped(lambda ticks: layout.shard(ticks, rank, 0)),
            layout=layout,
            last_ticks=_last_ticks(pack, layout),
            pixel_values=tiles if tiles is not None and tiles.shape[0] else None,
            routing=self._routing(pack, num_tiles, layout),
            targets=self._targets(pack, layout, sets),
            drop_path=drop_path,
        )

    def _routing(self, pack: WholePack, num_tiles: int, layout: ZigzagLayout) -> ImageRouting | None:
        """Plan which feature goes to which token; a pack that holds no tiles is only checked."""
        if not self.first_stage:
            return None
        image_tokens = (pack.input_ids == self.image_token_id).nonzero().squeeze(1).cpu()
        plan = ImageRouting.plan(image_tokens, num_tiles, self.tokens_per_tile, layout, self.coordinates)
        return plan.to(pack.input_ids.device) if num_tiles else None

    def _targets(self, pack: WholePack, layout: ZigzagLayout, sets: DocumentSets | None) -> Targets | None:
        """Find the supervised rows among this rank's tokens."""
        if pack.labels is None or pack.loss_weights is None:
            return None
        rank = self.coordinates.context_parallel_rank
        slices = self.coordinates.tensor_model_parallel_size if self.coordinates.sequence_parallel else 1
        labels, weights = layout.shard(pack.labels, rank, IGNORE_INDEX), layout.shard(pack.loss_weights, rank, 0.0)
        if sets is None:
            return Targets.from_labels(labels, weights, IGNORE_INDEX, slices)
        owners, lengths = (torch.tensor(some, dtype=torch.int64) for some in (sets.of_documents, list(pack.seqlens)))
        of_tokens = torch.repeat_interleave(owners, lengths)
        of_mine = layout.shard(of_tokens.to(labels.device), rank, 0)  # padding is supervised nowhere
        return Targets.from_labels(labels, weights, IGNORE_INDEX, slices, of_mine, sets.count)


def _last_ticks(pack: WholePack, layout: ZigzagLayout) -> tuple[int, ...]:
    """Return the largest tick of each whole document, 0 for a document of padding."""
    documents = pack.position_ticks.values.split(list(pack.seqlens)) if len(pack.seqlens) else ()
    ends = [int(part.max()) for part in documents]
    return (*ends, *[0] * (len(layout.seqlens) - len(ends)))


@dataclass(frozen=True)
class PixelSettings:
    """What tiles become on the model's device before a step uses them."""

    device: torch.device
    """Device of the model."""
    dtype: torch.dtype
    """dtype of the pixel tensor."""
    mean_std: tuple[Sequence[float], Sequence[float]]
    """Mean and standard deviation of each channel."""

    def ready(self, batch: MicroBatch) -> MicroBatch:
        """Normalise the tiles of a batch that has been cut and moved; on CUDA the host does not wait for it."""
        if batch.pixel_values is None:
            return batch
        return replace(batch, pixel_values=normalise_tiles(batch.pixel_values, *self.mean_std, self.dtype))
