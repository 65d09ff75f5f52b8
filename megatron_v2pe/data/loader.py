"""Micro-batches for one data-parallel rank: packs planned in a thread of this process, tiles read in worker processes.

Pack k of the plan goes to rank k modulo the number of ranks. The state is taken after a whole round of ranks, so a run
goes on with the very same packs under any number of ranks and workers.
"""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megatron_v2pe.data.collate import collate
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.documents import DocumentEncoder, ModelFacts
from megatron_v2pe.data.image_transform import NORMALISATION
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.pictures import read_tiles
from megatron_v2pe.data.plan import PackPlan
from megatron_v2pe.data.prefetch import prefetch
from megatron_v2pe.data.skip import SkipLog
from megatron_v2pe.data.sources import read_data_list
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Batch, Document, SampleId
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.stride import StridePolicy

Documents = tuple[Document, ...]
ROUNDS_AHEAD = 4


@dataclass(frozen=True)
class ReadPack:
    """A micro-batch, and the documents it had to do without."""

    batch: Batch
    unreadable: tuple[tuple[SampleId, str], ...]


@dataclass(frozen=True)
class PackReader(Dataset[ReadPack]):
    """Reads the tiles of a planned pack; runs in worker processes."""

    tile_size: int
    mean: Sequence[float]
    reduction: str

    def __getitem__(self, documents: Documents) -> ReadPack:
        """Read one pack; a document whose images turn out damaged is left out and reported."""
        kept, tiles, unreadable = [], [torch.empty(0, self.tile_size, self.tile_size, 3, dtype=torch.uint8)], []
        for document in documents:
            try:
                tiles.append(read_tiles(document.pictures, self.tile_size, self.mean, document.key))
                kept.append(document)
            except DataError as error:
                unreadable.append((document.source, str(error)))
        batch = collate(kept, torch.cat(tiles), self.reduction)
        return ReadPack(batch, tuple(unreadable))


class PackLoader:
    """An endless iterator over this rank's micro-batches."""

    def __init__(
        self, plan: PackPlan, reader: PackReader, skipped: SkipLog, workers: int, rank: int, size: int
    ) -> None:
        """Take every `size`-th pack of the plan from `rank` on, read by `workers` processes (0: by this one)."""
        self._plan, self._rank, self._size = plan, rank, size
        self._states: deque[dict[str, Any]] = deque()
        self._state = plan.state_dict()
        self._unreadable = SkipLog(skipped.limit, besides=skipped)
        self._loader = DataLoader(
            reader,
            batch_size=None,
            sampler=_Turns(self._my_packs),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            worker_init_fn=_leave_signals_to_the_run,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches without end.

        Raises:
            DataError: more samples had to be skipped than the run allows.
        """
        for read in self._loader:
            for source, message in read.unreadable:
                self._unreadable.skip(source, DataError(message))
            self._state = self._states.popleft()
            yield read.batch

    def state_dict(self) -> dict[str, Any]:
        """Return what has been consumed by all ranks; plain JSON. Unreadable samples are this rank's alone."""
        return {**self._state, "skipped": dict(Counter(self._state["skipped"]) + self._unreadable.counts)}

    @property
    def unusable(self) -> int:
        """Samples refused when packs were planned, up to the packs consumed; the same on every rank."""
        return sum(self._state["skipped"].values())

    @property
    def unreadable(self) -> Counter[str]:
        """Samples of this rank whose images turned out damaged, by cause, since this loader was opened."""
        return self._unreadable.counts

    def _my_packs(self) -> Iterator[Documents]:
        """Yield this rank's packs, planned ahead in a thread so that a step does not wait for it."""
        for documents, state in prefetch(self._rounds(), ROUNDS_AHEAD):
            self._states.append(state)
            yield documents

    def _rounds(self) -> Iterator[tuple[Documents, dict[str, Any]]]:
        """Plan packs for all ranks, round by round; give this rank's and the state after the round."""
        while True:
            round_ = [self._plan.next() for _ in range(self._size)]
            yield round_[self._rank], self._plan.state_dict()


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to the whole process group asks the run to save and stop, for which it still needs its workers."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Turns(Sampler[Documents]):
    def __init__(self, packs: Any) -> None:
        self._packs = packs

    def __iter__(self) -> Iterator[Documents]:
        return self._packs()


def build_loader(
    config: DataConfig,
    tokenizer: Tokenizer,
    facts: ModelFacts,
    policy: StridePolicy,
    *,
    seed: int,
    dp_rank: int,
    dp_size: int,
    state: dict[str, Any] | None = None,
) -> PackLoader:
    """Open a data list for one data-parallel rank.

    Args:
        config: data list, tiling, packing, loss weights.
        tokenizer: of the checkpoint.
        facts: tile size and tokens per tile of the checkpoint.
        policy: strides of images.
        seed: of order and augmentation.
        dp_rank: this rank among those that read different packs.
        dp_size: how many there are.
        state: `state_dict` of an earlier run to go on from; any `dp_size` and worker count may have written it.

    Raises:
        ConfigError: the data list is wrong, or the state belongs to other data.
    """
    encoder = DocumentEncoder(config, tokenizer, facts, policy, seed)
    mixture = Mixture(read_data_list(config.meta_path), seed, config.use_data_resampling)
    counts = state["skipped"] if state else None
    skipped = SkipLog(config.max_skipped_samples, counts, quiet=dp_rank > 0)
    plan = PackPlan(mixture, encoder, skipped, state)
    reader = PackReader(
        tile_size=facts.tile_size,
        mean=NORMALISATION[config.normalize_type][0],
        reduction=config.loss_reduction,
    )
    return PackLoader(plan, reader, skipped, config.num_workers, dp_rank, dp_size)
