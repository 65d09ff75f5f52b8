"""One reader per copy of the model: its first rank loads a micro-batch, the others receive it.

Text goes to every tensor-, context- and pipeline-parallel rank; tiles go to the ranks of the first stage, to each those
it encodes. All travel from host to host as they are stored (integers and bytes), over groups of their own: a thread may
read a step ahead while the model's groups are in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.data.bad_samples import FIND_ALL
from megatron_v2pe.data.types import Batch
from megatron_v2pe.device.rank_errors import raise_on_all_ranks
from megatron_v2pe.errors import DataError
from megatron_v2pe.models.micro_batch import IGNORE_INDEX, DocumentSets
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates
from megatron_v2pe.train.data_counts import DataCounts
from megatron_v2pe.v2pe.position_ids import Ticks

_TEXT = ("input_ids", "labels", "loss_weights")
_COUNTS = ("packs", "tokens", "squares", "tiles", "supervised")


class Loader(Protocol):
    """What a feed reads from: packs of this data-parallel rank without end."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over this data-parallel rank's packs without end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has been consumed."""
        ...

    @property
    def unusable(self) -> int:
        """Return how many samples were refused when packs were planned, the same on every rank."""
        ...

    @property
    def unreadable(self) -> Counter[str]:
        """Return the samples that this rank alone had to leave out, by cause."""
        ...


@dataclass(frozen=True)
class HostGroups:
    """Groups over which hosts exchange what is read; nothing else may use them."""

    world: dist.ProcessGroup
    model_copy: dist.ProcessGroup | None
    """All ranks that share a copy of the model; None where that is this rank alone."""

    @classmethod
    def open(cls, model_copies: Sequence[Sequence[int]], timeout_minutes: float) -> HostGroups | None:
        """Create the groups; every rank of the world calls this. None for a world of one.

        Args:
            model_copies: the ranks of every copy of the model.
            timeout_minutes: how long one rank waits for another.
        """
        if dist.get_world_size() == 1:
            return None
        timeout, mine = timedelta(minutes=timeout_minutes), None
        world = dist.new_group(timeout=timeout, backend="gloo")
        for ranks in model_copies:
            if len(ranks) > 1:
                group = dist.new_group(list(ranks), timeout=timeout, backend="gloo")
                mine = group if dist.get_rank() in ranks else mine
        assert isinstance(world, dist.ProcessGroup) and (mine is None or isinstance(mine, dist.ProcessGroup))
        return cls(world, mine)


@dataclass(frozen=True)
class Totals:
    """What the packs of a step hold, over all copies of the model; known before the step begins.

    The loss of a step is normalised once. `data/batch.loss_weights` gives each token of a document its weight; the sum
    of the weights of all packs of all copies is the `denominator`; `train/step.py` divides by it the weighted sum of
    token losses that each rank computes, so that the shares of all ranks add up to the loss.
    """

    weight: float = 0.0
    """Sum of the loss weights."""
    packs: int = 0
    """Number of packs."""
    tokens: int = 0
    """Number of tokens, padding not counted."""
    squares: int = 0
    """Sum of the squared lengths of the documents: what causal attention costs."""
    tiles: int = 0
    """Number of tiles."""
    supervised: int = 0
    """Number of tokens whose successor is learned."""
    drawn: DataCounts = field(default_factory=lambda: DataCounts.nothing(()))
    """The same by data set, and how long the documents are."""

    @property
    def denominator(self) -> float:
        """Return the one denominator of the loss; 1 in a step that supervises nothing, whose loss is zero."""
        return self.weight or 1.0

    @classmethod
    def of(cls, batches: Sequence[Batch], names: Sequence[str] = ()) -> Totals:
        """Count the micro-batches of one reader; `names` are those of the data sets that are counted apart."""
        return cls(
            weight=sum(batch.loss_weights.double().sum().item() for batch in batches),
            packs=len(batches),
            tokens=sum(batch.input_ids.shape[0] for batch in batches),
            squares=sum(length**2 for batch in batches for length in batch.seqlens),
            tiles=sum(sum(batch.num_tiles) for batch in batches),
            supervised=sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches),
            drawn=DataCounts.of(batches, names),
        )

    def to_vector(self) -> Tensor:
        """Return all numbers as float64, to be added up over readers."""
        counts = [getattr(self, name) for name in _COUNTS]
        return torch.cat([torch.tensor([self.weight, *counts], dtype=torch.float64), self.drawn.counts])

    @classmethod
    def from_vector(cls, vector: Tensor, names: Sequence[str] = ()) -> Totals:
        """Return the totals of a vector that `to_vector` has given for the same data sets."""
        weight, *counts = vector[: 1 + len(_COUNTS)].tolist()
        whole = {name: int(count) for name, count in zip(_COUNTS, counts, strict=True)}
        return cls(weight, **whole, drawn=DataCounts(tuple(names), vector[1 + len(_COUNTS) :]))


@dataclass(frozen=True)
class Consumed:
    """What a run has consumed of the data by the end of a step, as the reader of a copy of the model knows it."""

    loader_state: dict[str, Any] = field(default_factory=dict)
    """State of the loader; empty on a rank that has none."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Samples that the loader had to leave out by then, by cause."""
    drawn: DataCounts | None = None
    """What the step has drawn, over all copies of the model; known to every rank."""


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of a step, whole."""

    batches: list[Batch]
    totals: Totals
    consumed: Consumed = field(default_factory=Consumed)
    """What counts as consumed once the step is done."""


class DataFeed:
    """Micro-batches for every rank that works on the same packs; they lie on the host."""

    def __init__(
        self,
        loader: Loader | None,
        groups: HostGroups | None,
        tile_ranks: Sequence[int] | None,
        coordinates: RankCoordinates,
        max_skipped_samples: int,
        names: Sequence[str] = (),
    ) -> None:
        """Set up the feed; every rank calls this.

        Args:
            loader: on the first rank of each copy of the model, None on the others.
            groups: over which ranks exchange what is read; None for a world of one.
            tile_ranks: the first stage's tensor x context parallel ranks, the reader first among them; None on ranks
                of other stages.
            coordinates: where this rank stands in it.
            max_skipped_samples: bad samples allowed over all ranks.
            names: of the data sets, the same on every rank; without them nothing is counted by data set.
        """
        self._copy = None if groups is None else groups.model_copy
        self._world = None if groups is None else groups.world
        assert (loader is not None) == (self._copy is None or self._copy.rank() == 0)
        self.loader = loader
        self._batches = iter(loader) if loader is not None else None
        self._tile_ranks, self._coordinates = tile_ranks, coordinates
        self._source = dist.get_rank() if self._copy is None else dist.get_process_group_ranks(self._copy)[0]
        self._limit = max_skipped_samples
        self._numbers = {name: number for number, name in enumerate(names)}
        self.drawn = DataCounts.nothing(names)
        """What finished steps have drawn; a run that goes on sets it to that of its checkpoint."""
        self.watch: Callable[[Batch], None] | None = None
        """Is shown every micro-batch whole, on a reader, in the thread that reads; must not raise."""
        self._skipped = Counter[str]()
        self._committed = Consumed() if loader is None else Consumed(loader.state_dict())

    def step(self, count: int) -> StepBatches:
        """Return the micro-batches of a step; every rank of the world calls this, from one thread at a time.

        Raises:
            DataError: some rank met bad data, or all together too much of it; raised on every rank.
        """
        batches: list[Batch] = []
        problem: DataError | None = None
        try:
            batches = [self._next() for _ in range(count)]
        except DataError as error:
            problem = error
        totals = self._agree(problem, Totals.of(batches if self.loader is not None else (), self.drawn.names))
        if self.loader is None:
            return StepBatches(batches, totals, Consumed(drawn=totals.drawn))
        consumed = Consumed(self.loader.state_dict(), Counter(self.loader.unreadable), totals.drawn)
        return StepBatches(batches, totals, consumed)

    def sets_of(self, batch: Batch) -> DocumentSets | None:
        """Return the numbers of the data sets of a micro-batch's documents; None where nothing is counted by set."""
        if not self._numbers:
            return None
        return DocumentSets(tuple(self._numbers[source.dataset] for source in batch.sources), len(self._numbers))

    def commit(self, consumed: Consumed) -> None:
        """Note that a step is done; from now on a checkpoint counts its data as consumed."""
        self._committed = consumed
        if consumed.drawn is not None:
            self.drawn = self.drawn + consumed.drawn

    def place(self) -> dict[str, Any] | None:
        """Return what finished steps have consumed, which all readers hold alike; None on a rank that reads nothing."""
        state = self._committed.loader_state
        return None if self.loader is None else {name: value for name, value in state.items() if name != "skipped"}

    def state_dict(self) -> dict[str, Any]:
        """Return what finished steps have consumed, with the bad samples of all ranks; every rank calls this."""
        others = Counter[str]() if dist.get_rank() == 0 else self._committed.unreadable
        counters: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(counters, others)
        state = self._committed.loader_state
        self._skipped = sum(counters, Counter(state.get("skipped", {})))
        return {**state, "skipped": dict(self._skipped)}

    def skipped(self) -> tuple[dict[str, int], list[dict[str, str]]]:
        """Return the samples left out, by cause, and some of them with the whole error, as this reader knows them.

        What only other ranks have met is counted as of the last checkpoint.
        """
        assert self.loader is not None
        mine = Counter(self._committed.loader_state.get("skipped", {}))
        return dict(mine | self._skipped), list(getattr(self.loader, "skip_examples", []))

    def _agree(self, problem: DataError | None, mine: Totals) -> Totals:
        """Add up what the ranks have read; an error of one of them is one of all."""
        unreadable = 0 if self.loader is None else sum(self.loader.unreadable.values())
        unusable = self.loader.unusable if self.loader is not None and dist.get_rank() == 0 else 0
        counts = torch.tensor([problem is not None, unreadable + unusable], dtype=torch.float64)
        counts = torch.cat([counts, mine.to_vector()])
        if self._world is not None:
            dist.all_reduce(counts, group=self._world)
        failed, skipped = counts[:2].tolist()
        if failed:
            raise_on_all_ranks(partial(_raise, problem), self._world)
        if skipped > self._limit:
            raise DataError(
                f"{skipped:.0f} bad samples over all ranks, data.max_skipped_samples allows {self._limit}; "
                f"the ranks that met them name them in their output; {FIND_ALL}"
            )
        return Totals.from_vector(counts[2:], self.drawn.names)

    def _next(self) -> Batch:
        """Return the next micro-batch: the whole text, and the tiles this rank encodes.

        The reader of a copy sends a header, then the tensors of the text, then to each rank its tiles.
        """
        batch, problem = None, None
        if self._batches is not None:
            try:
                batch = next(self._batches)
                if self.watch is not None:
                    self.watch(batch)
            except DataError as error:
                problem = str(error)
        if self._copy is None:
            if batch is None:
                raise DataError(problem)
            return batch
        return self._exchanged(batch, self._header(batch, problem))

    def _header(self, batch: Batch | None, problem: str | None) -> Any:
        """Send what has to be known before tensors are sent, and return it.

        Raises:
            DataError: the reader met one; it travels in place of the header.
        """
        header: list[Any] = [problem]
        if batch is not None:
            dtypes = {name: getattr(batch, name).dtype for name in _TEXT}
            tile_shape, denominator = tuple(batch.tiles.shape), batch.position_ticks.denominator
            header = [(dtypes, tile_shape, denominator, batch.seqlens, batch.num_tiles, batch.sources)]
        dist.broadcast_object_list(header, src=self._source, group=self._copy, device=torch.device("cpu"))
        if isinstance(header[0], str):
            raise DataError(header[0])
        return header[0]

    def _exchanged(self, batch: Batch | None, header: Any) -> Batch:
        """Send the batch of the reader, and return what of it is for this rank."""
        dtypes, tile_shape, denominator, seqlens, num_tiles, sources = header
        count = sum(seqlens)
        text = {name: self._share(getattr(batch, name, None), (count,), dtype) for name, dtype in dtypes.items()}
        values = None if batch is None else batch.position_ticks.values
        ticks = Ticks(self._share(values, (count,), torch.int64), denominator)
        tiles = self._deal_out(None if batch is None else batch.tiles, tile_shape)
        of_documents = () if batch is None else batch.document_tiles
        return Batch(
            **text,
            position_ticks=ticks,
            tiles=tiles,
            seqlens=seqlens,
            num_tiles=num_tiles,
            sources=sources,
            document_tiles=of_documents,
        )

    def _share(self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Send a tensor of the reader to all ranks of the copy."""
        tensor = torch.empty(shape, dtype=dtype) if tensor is None else tensor.contiguous()
        if tensor.numel():
            dist.broadcast(tensor, src=self._source, group=self._copy)
        return tensor

    def _deal_out(self, tiles: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Send every rank of the first stage the tiles it encodes, and no others."""
        count = shape[0]
        if self._tile_ranks is None:
            return torch.empty((0, *shape[1:]), dtype=torch.uint8)
        mine = self._coordinates.tiles(count)
        if tiles is None:
            received = torch.empty((len(mine), *shape[1:]), dtype=torch.uint8)
            if len(mine):
                dist.recv(received, src=self._source, group=self._copy)
            return received
        leaving: list[Any] = []
        for member, rank in enumerate(self._tile_ranks):
            theirs = self._coordinates.neighbour(member).tiles(count)
            if member and len(theirs):
                part = tiles[theirs.start : theirs.stop].contiguous()
                leaving.append((dist.isend(part, dst=rank, group=self._copy), part))
        for work, _ in leaving:
            work.wait()
        return tiles[mine.start : mine.stop]


def _raise(problem: DataError | None) -> None:
    if problem is not None:
        raise problem
