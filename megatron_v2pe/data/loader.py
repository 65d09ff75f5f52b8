"""Micro-batches for one data-parallel rank: packs planned in a thread of this process, tiles read in worker processes.

Every rank plans the packs of all, a step at a time, and takes its share. The state is taken after a whole step, so a
run goes on with the very same packs under any number of ranks and workers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, Sampler

from megatron_v2pe.base.orphans import lost_reader
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.batch import PackReader
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.hold_out import HoldOut, training_sets
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.indexed.plan import IndexedPlan, IndexedPlanState, IndexedReader
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.indexed.verify import warn_of_edits
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.pack_plan import PackPlan, PackPlanState
from megatron_v2pe.data.prefetch import prefetch
from megatron_v2pe.data.reader_processes import Patience, Readers, hide_lost_connections, leave_signals_to_the_run
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Batch
from megatron_v2pe.errors import DataError, LostProcessError
from megatron_v2pe.v2pe.settings import StridePolicy

PACKS_AHEAD = 4
"""Packs planned before a worker asks for them."""


READ_SECONDS = 1800.0
"""A micro-batch that takes longer to read never comes: its reader hangs."""


class Plan(Protocol):
    """A plan of packs: it gives the packs of the next step, and says which rank gets which."""

    @property
    def mixture(self) -> Mixture[Any]:
        """The order of samples: data sets, and samples of an epoch."""
        ...

    def step(self, packs: int) -> Sequence[Any]:
        """Return the packs of the next step."""
        ...

    def deal(self, packs: Sequence[Any], ranks: int) -> list[list[int]]:
        """Say which packs of a step each rank gets, in order; all the same number."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last step; plain JSON."""
        ...


class PackLoader:
    """An endless iterator over this rank's micro-batches."""

    def __init__(
        self,
        plan: Plan,
        reader: Dataset[Batch],
        skipped: SkipLog,
        *,
        workers: int,
        rank: int,
        size: int,
        packs_per_step: int,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        """Take this rank's share of each step's packs, read by `workers` processes (0: by this one).

        Args:
            plan: of all packs.
            reader: makes a micro-batch of a pack.
            skipped: samples the plan did without.
            workers: processes that read.
            rank: among those that read different packs.
            size: how many there are.
            packs_per_step: over all ranks, a multiple of `size`.
            read_seconds: how long a micro-batch is waited for; one that takes longer never comes: its reader hangs.
        """
        assert packs_per_step % size == 0
        self._plan = plan
        self._state = plan.state_dict()
        self._planned = _PlannedPacks(plan, rank, size, packs_per_step)
        self._unreadable, self._refused = SkipLog(skipped.limit, besides=skipped), skipped
        self._read_seconds = read_seconds
        if workers:
            hide_lost_connections()
        self._loader = DataLoader(
            reader,
            batch_size=None,
            sampler=self._planned,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            worker_init_fn=leave_signals_to_the_run,
            multiprocessing_context=Readers() if workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches without end.

        Raises:
            DataError: more samples had to be skipped than the run allows.
            LostProcessError: a reader was killed, or no longer answers.
        """
        for batch in self._read():
            for source, message in batch.unreadable:
                self._unreadable.skip(source, DataError(message))
            self._state = self._planned.state_of_next()
            yield batch

    def _read(self) -> Iterator[Batch]:
        """Yield what the readers have read; an error of theirs that only means a lost process is named as that."""
        batches: Any = iter(self._loader)
        if not self._loader.num_workers:
            yield from batches
            return
        # Only readers write; with our own end closed, a wait for the rest of an answer ends with the readers.
        batches._worker_result_queue._writer.close()
        patience = Patience(self._read_seconds, batches._workers)
        try:
            while True:
                with patience:
                    batch = next(batches)
                yield batch
        except StopIteration:
            return
        except (RuntimeError, EOFError, OSError) as error:
            if (lost := self._lost(error, patience)) is not None:
                raise lost from error
            raise
        finally:
            patience.end()

    def _lost(self, error: Exception, patience: Patience) -> LostProcessError | None:
        """Return the error that names a lost reader, None where none was lost."""
        if patience.lost:
            return LostProcessError(
                f"a reader process has not answered for {self._read_seconds:.0f} s and was ended; the same command "
                "goes on"
            )
        if patience.dead or (isinstance(error, OSError | EOFError) and patience.cut_off()):
            return lost_reader(RuntimeError("in the middle of an answer"))
        # A RuntimeError that names its DataLoader is PyTorch's only word for a reader that has ended.
        return lost_reader(error) if isinstance(error, RuntimeError) and "DataLoader" in str(error) else None

    def state_dict(self) -> dict[str, Any]:
        """Return what has been consumed by all ranks; plain JSON. Unreadable samples are this rank's alone."""
        return {**self._state, "skipped": dict(Counter(self._state["skipped"]) + self._unreadable.counts)}

    @property
    def plan(self) -> Plan:
        """Where packs come from."""
        return self._plan

    @property
    def unusable(self) -> int:
        """Samples refused when packs were planned, up to the packs consumed; the same on every rank."""
        return sum(self._state["skipped"].values())

    @property
    def skip_examples(self) -> list[dict[str, str]]:
        """Some of the samples left out since this loader was opened: `sample` and `error`."""
        return [*self._refused.examples, *self._unreadable.examples]

    @property
    def unreadable(self) -> Counter[str]:
        """Samples of this rank whose images turned out damaged, by cause, since this loader was opened."""
        return self._unreadable.counts


class _PlannedPacks(Sampler[Any]):
    """This rank's packs, planned ahead in a thread, each with the plan's state once it has been consumed.

    Readers take packs from here long before a step consumes them, so a pack's state waits in a queue of its own. Packs
    come back in the order in which they were taken, whoever read them:

        plan --thread--> pack 3 ---> readers ---> pack 3's micro-batch ---> the step
                            `------ state 3 waits in the queue --------------^ state_of_next()
    """

    def __init__(self, plan: Plan, rank: int, size: int, packs_per_step: int) -> None:
        """Take a rank's packs of a plan; arguments are those of `PackLoader`."""
        self._plan, self._rank, self._size, self._packs = plan, rank, size, packs_per_step
        self._waiting: deque[dict[str, Any]] = deque()

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's packs without end."""
        for pack, state in prefetch(self._dealt(), PACKS_AHEAD):
            self._waiting.append(state)
            yield pack

    def state_of_next(self) -> dict[str, Any]:
        """Return the state after the earliest pack that has not been asked about yet."""
        return self._waiting.popleft()

    def _dealt(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Plan packs for all ranks, a step at a time; give this rank's, the last of a step with the state after it."""
        state = self._plan.state_dict()
        while True:
            packs = self._plan.step(self._packs)
            *others, last = self._plan.deal(packs, self._size)[self._rank]
            for number in others:
                yield packs[number], state
            state = self._plan.state_dict()
            yield packs[last], state


def _skipped(state: dict[str, Any] | None, indexed: bool) -> dict[str, int] | None:
    """Check the state of an earlier run; return the samples it refused, by cause."""
    if state is None:
        return None
    return IndexedPlanState.read(state).skipped if indexed else PackPlanState.read(state).skipped


def build_loader(
    config: DataConfig,
    tokenizer: Tokenizer,
    facts: ModelFacts,
    policy: StridePolicy,
    *,
    seed: int,
    dp_rank: int,
    dp_size: int,
    packs_per_step: int | None = None,
    state: dict[str, Any] | None = None,
    read_seconds: float = READ_SECONDS,
    epochs: float | None = None,
    hold_out: HoldOut | None = None,
) -> PackLoader:
    """Open a data list or an indexed data set for one data-parallel rank.

    Args:
        config: the data, tiling, packing, loss weights.
        tokenizer: of the checkpoint.
        facts: tile size and tokens per tile of the checkpoint.
        policy: strides of images.
        seed: of order and augmentation.
        dp_rank: this rank among those that read different packs.
        dp_size: how many there are.
        packs_per_step: over all ranks; `dp_size` by default.
        state: `state_dict` of an earlier run to go on from; any `dp_size` and worker count may have written it.
        read_seconds: see `PackLoader`.
        epochs: of a data list: after so many come empty packs, see `PackPlan`; an indexed set ends each epoch so.
        hold_out: which samples never come.

    Raises:
        ConfigError: the data list is wrong, an indexed set was built with other settings, or the state belongs to
            other data.
        DataError: an indexed set is damaged.
    """
    encoder = DocumentEncoder(config, tokenizer, facts, policy, seed)
    counts = _skipped(state, bool(config.indexed_path))
    skipped = SkipLog(config.max_skipped_samples, counts, quiet=dp_rank > 0)
    mean, _ = NORMALISATION[config.normalize_type]
    reader = PackReader(facts.tile_size, mean, config.loss_reduction, encoder.denominator)
    if config.indexed_path:
        samples = IndexedSamples(config.indexed_path)
        samples.check(config, tokenizer, facts)
        if dp_rank == 0:
            warn_of_edits(samples)
        plan = IndexedPlan(samples, config, seed, skipped, state, hold_out)
        reading = IndexedReader(samples, encoder, reader)
    else:
        mixture = Mixture(training_sets(config.meta_path, hold_out), seed, config.use_data_resampling)
        plan, reading = PackPlan(mixture, encoder, skipped, state, epochs), reader
    return PackLoader(
        plan,
        reading,
        skipped,
        workers=config.num_workers,
        rank=dp_rank,
        size=dp_size,
        packs_per_step=packs_per_step or dp_size,
        read_seconds=read_seconds,
    )
