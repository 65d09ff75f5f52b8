"""Micro-batches for one data-parallel rank: packs planned in a thread of this process, tiles read in worker processes.

Every rank plans the packs of all, a step at a time, and takes its share. The state is taken after a whole step, so a
run goes on with the very same packs under any number of ranks and workers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from multiprocessing import AuthenticationError, popen_fork
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, Sampler

from megatron_v2pe.base.orphans import killed_with_parent, lost_reader
from megatron_v2pe.data.annotations import read_data_list
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.image_transform import NORMALISATION
from megatron_v2pe.data.indexed.plan import IndexedPlan, IndexedPlanState, IndexedReader
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.indexed.verify import warn_of_edits
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.pack_reader import PackReader, ReadPack
from megatron_v2pe.data.plan import PackPlan, PackPlanState
from megatron_v2pe.data.prefetch import prefetch
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Batch
from megatron_v2pe.errors import DataError, LostProcessError
from megatron_v2pe.v2pe.settings import StridePolicy

PACKS_AHEAD = 4
"""Packs planned before a worker asks for them."""


READ_SECONDS = 1800.0
"""A micro-batch that takes longer to read never comes: its reader hangs."""


class Plan(Protocol):
    """Where packs come from."""

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch."""
        ...

    @property
    def num_sets(self) -> int:
        """Data sets."""
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
        reader: Dataset[ReadPack],
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
        self._plan, self._rank, self._size, self._packs = plan, rank, size, packs_per_step
        self._states: deque[dict[str, Any]] = deque()
        self._state = plan.state_dict()
        self._unreadable = SkipLog(skipped.limit, besides=skipped)
        self._read_seconds = read_seconds
        if workers:
            _say_nothing_of_lost_connections()
        self._loader = DataLoader(
            reader,
            batch_size=None,
            sampler=_Turns(self._my_packs),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            worker_init_fn=_leave_signals_to_the_run,
            multiprocessing_context=_Readers() if workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches without end.

        Raises:
            DataError: more samples had to be skipped than the run allows.
            LostProcessError: a reader was killed, or no longer answers.
        """
        for read in self._read():
            for source, message in read.unreadable:
                self._unreadable.skip(source, DataError(message))
            self._state = self._states.popleft()
            yield read.batch

    def _read(self) -> Iterator[ReadPack]:
        batches: Any = iter(self._loader)
        patience = None
        if self._loader.num_workers:
            # Only readers write; with our own end closed, a wait for the rest of an answer ends with the readers.
            batches._worker_result_queue._writer.close()
            patience = _Patience(self._read_seconds, batches._workers)
        try:
            while True:
                with patience or nullcontext():
                    read = next(batches, None)
                if read is None:
                    return
                yield read
        except (RuntimeError, EOFError, OSError) as error:
            if patience is not None and patience.lost:
                raise LostProcessError(
                    f"a reader process has not answered for {self._read_seconds:.0f} s and was ended; the same command "
                    "goes on"
                ) from error
            if patience is not None and (
                patience.dead or (isinstance(error, OSError | EOFError) and patience.cut_off())
            ):
                raise lost_reader(RuntimeError("in the middle of an answer")) from error
            if not isinstance(error, RuntimeError) or "DataLoader" not in str(error):  # PyTorch's only word for it
                raise
            raise lost_reader(error) from error
        finally:
            if patience is not None:
                patience.end()

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
    def unreadable(self) -> Counter[str]:
        """Samples of this rank whose images turned out damaged, by cause, since this loader was opened."""
        return self._unreadable.counts

    def _my_packs(self) -> Iterator[Any]:
        """Yield this rank's packs, planned ahead in a thread so that a step does not wait for it."""
        for pack, state in prefetch(self._dealt(), PACKS_AHEAD):
            self._states.append(state)
            yield pack

    def _dealt(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Plan packs for all ranks, step by step; give this rank's, the last of a step with the state after it."""
        state = self._plan.state_dict()
        while True:
            packs = self._plan.step(self._packs)
            *others, last = self._plan.deal(packs, self._size)[self._rank]
            for number in others:
                yield packs[number], state
            state = self._plan.state_dict()
            yield packs[last], state


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to the whole process group asks the run to save and stop, for which it still needs its workers."""
    killed_with_parent()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _say_nothing_of_lost_connections() -> None:
    """A reader that ends in the middle of a request is told about by whoever ended it, not by the thread it asked.

    The thread of `multiprocessing` that hands out tensors calls `sys.excepthook` for it, and goes on.
    """
    usual = sys.excepthook
    if getattr(usual, "quiet", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lost = issubclass(kind, (EOFError, OSError, AuthenticationError))
        if not (lost and threading.current_thread() is not threading.main_thread()):
            usual(kind, error, trace)

    vars(hook)["quiet"] = True
    sys.excepthook = hook


class _Ending(popen_fork.Popen):
    """A forked process that can be ended: it takes no notice of SIGTERM."""

    def terminate(self) -> None:
        self.kill()


class _Reader(ForkProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> popen_fork.Popen:  # noqa: N802  multiprocessing's name
        return _Ending(process_obj)


class _Readers(ForkContext):
    """How readers are started: as PyTorch does, but Python can end them at its own end."""

    Process = _Reader


_NOTICED_SECONDS = 7.0
"""PyTorch looks for readers that have ended every five."""


class _Patience:
    """Ends the readers where one of them is not heard of for too long; used as a context around each wait.

    PyTorch's own limit counts until a reader begins to answer. One that is frozen in the middle of an answer, or before
    it hands out the memory its answer lies in, would be waited for without end. So would one that is killed there: the
    signal of its end reaches the main thread, which need not be the one that reads.
    """

    def __init__(self, seconds: float, readers: Sequence[BaseProcess]) -> None:
        """Start a thread that looks every second.

        Args:
            seconds: how long an answer is waited for.
            readers: the processes.
        """
        self.lost = False
        """A reader has not answered, and all were ended."""
        self.dead = False
        """A reader has ended, PyTorch has not noticed, and all were ended."""
        self._seconds, self._readers = seconds, readers
        self._since: float | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="patience with readers", daemon=True).start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None

    def cut_off(self) -> bool:
        """Tell whether a reader has ended; what it wrote may end an instant before it does."""
        until = time.monotonic() + 1
        while not any(map(_has_ended, self._readers)):
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        noticed: float | None = None
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            since, now = self._since, time.monotonic()
            if since is None:
                noticed = None
                continue
            if noticed is None and any(map(_has_ended, self._readers)):
                noticed = now
            self.dead = noticed is not None and now - noticed > _NOTICED_SECONDS
            self.lost = not self.dead and now - since > self._seconds
            if self.dead or self.lost:
                for reader in self._readers:
                    reader.kill()
                return


def _has_ended(reader: BaseProcess) -> bool:
    """Tell whether a process has ended; its status is left for PyTorch to find."""
    try:
        return os.waitid(os.P_PID, reader.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
    except AttributeError:  # a system without `waitid`
        return not reader.is_alive()


class _Turns(Sampler[Any]):
    def __init__(self, packs: Any) -> None:
        self._packs = packs

    def __iter__(self) -> Iterator[Any]:
        return self._packs()


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

    Raises:
        ConfigError: the data list is wrong, an indexed set was built with other settings, or the state belongs to
            other data.
        DataError: an indexed set is damaged.
    """
    encoder = DocumentEncoder(config, tokenizer, facts, policy, seed)
    counts = _skipped(state, bool(config.indexed_path))
    skipped = SkipLog(config.max_skipped_samples, counts, quiet=dp_rank > 0)
    mean, _ = NORMALISATION[config.normalize_type]
    reader = PackReader(tile_size=facts.tile_size, mean=mean, reduction=config.loss_reduction)
    if config.indexed_path:
        samples = IndexedSamples(config.indexed_path)
        samples.check(config, tokenizer, facts)
        if dp_rank == 0:
            warn_of_edits(samples)
        plan, reading = IndexedPlan(samples, config, seed, skipped, state), IndexedReader(samples, encoder, reader)
    else:
        mixture = Mixture(read_data_list(config.meta_path), seed, config.use_data_resampling)
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
