"""Which documents make up each pack of a run, in order, with the state to go on from after each.

A plan is a pure function of the data list, the settings and the seed. Its state is small: a position in the stream of
samples and, of the packs still open, the positions of their documents, which are encoded again on resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import ceil
from typing import Annotated, Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.bad_samples import FIND_ALL, SkipLog
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.packing.balance import round_robin
from megatron_v2pe.data.packing.online import BestFitPacker, Pack
from megatron_v2pe.data.types import TrainingDocument
from megatron_v2pe.errors import CheckpointError, ConfigError, DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed

LOADER_STATE = "the checkpoint's training_state.json: loader"
"""Where a state comes from, for errors."""
_SHARES = ("repeat_time", "weight")
"""Fields of a data list that decide in which order samples come."""
_SETTINGS = ("data_augment", "max_dynamic_patch", "dynamic_image_size", "transparency", "exif_rotation", *_SHARES)
"""Fields of a data list that change what is trained on, or the order."""
_GO_ON = (
    "Put back the data list and the annotations the run was started with, and its validation.share; to train on with "
    "other data, start a new run from this one: --model_name_or_path RUN --checkpoint.save OTHER"
)
_SHOWN = 3
_log = get_logger(__name__)

_Position = Annotated[int, Range(0)]


@dataclass(frozen=True)
class DataState:
    """One data set as a run has read it, to be compared when the run goes on."""

    annotation: str
    """XXH3-128 of all bytes of its annotation file: 32 hexadecimal digits."""
    settings: dict[str, Any]
    """Fields of its entry that decide how samples are read; where its files lie does not matter."""

    @classmethod
    def of(cls, dataset: Dataset) -> DataState:
        """Describe a data set as it is now."""
        settings = {name: getattr(dataset, name) for name in _SETTINGS}
        if dataset.image_operations:
            settings["image_operations"] = list(dataset.image_operations)
        return cls(dataset.checksum, settings)


@dataclass(frozen=True)
class PackPlanState:
    """State of a plan, as a checkpoint holds it."""

    position: _Position
    """Position in the stream of samples."""
    open: tuple[tuple[_Position, ...], ...]
    """Positions of the documents of packs that are not full yet."""
    skipped: dict[str, _Position]
    """Samples refused so far, by cause."""
    mixture: Any
    """What decides the stream, to be compared."""
    data: dict[str, DataState] = field(default_factory=dict)
    """What was read of each data set, by its name; none in states of older versions."""

    @classmethod
    def read(cls, content: Any) -> PackPlanState:
        """Check the state of a checkpoint.

        Raises:
            ConfigError: it is that of an indexed data set.
            CheckpointError: damaged; names the field.
        """
        if isinstance(content, dict) and "plan" in content:
            raise ConfigError("the checkpoint was trained on an indexed data set; set data.indexed_path to it")
        state = typed(cls, content, LOADER_STATE, CheckpointError)
        for position in (place for pack in state.open for place in pack):
            if position >= state.position:
                message = f"open: found {position}, expected a sample before position {state.position}"
                raise CheckpointError(f"{LOADER_STATE}: {message}")
        return state


class PackPlan:
    """An iterator over packs: endless, or of so many epochs and empty packs after them."""

    def __init__(
        self,
        mixture: Mixture[Dataset],
        encoder: DocumentEncoder,
        skipped: SkipLog,
        state: dict[str, Any] | None = None,
        epochs: float | None = None,
    ) -> None:
        """Start at the beginning, or where `state` (of an earlier run) left off.

        Args:
            mixture: the stream of samples.
            encoder: makes documents of them.
            skipped: counts those that cannot be used.
            state: what `state_dict` returned in an earlier run.
            epochs: after so many the packs still open are given out, then empty ones without end: each sample is seen
                as often as that says. None: the stream goes on, and packs hold samples of two epochs where one ends.

        Raises:
            ConfigError: the state belongs to other data or another seed.
        """
        config = encoder.config
        self.mixture = mixture
        """The stream of samples."""
        self._encoder, self._skipped = encoder, skipped
        self._packer: BestFitPacker[TrainingDocument] = BestFitPacker(
            config.max_packed_tokens, config.num_images_expected, config.max_buffer_size
        )
        self._unread: dict[str, set[str]] = {}
        self._position = 0
        self._end = None if epochs is None else ceil(round(epochs * mixture.epoch_length, 6))
        if state is not None:
            self._restore(state)

    def __iter__(self) -> Iterator[tuple[TrainingDocument, ...]]:
        """Yield packs without end."""
        while True:
            yield self.next()

    def step(self, packs: int) -> list[tuple[TrainingDocument, ...]]:
        """Return the packs of the next step.

        Raises:
            DataError: see `next`.
        """
        return [self.next() for _ in range(packs)]

    def deal(self, packs: Sequence[tuple[TrainingDocument, ...]], ranks: int) -> list[list[int]]:
        """Deal the packs of a step out to ranks in turn."""
        return round_robin(len(packs), ranks)

    def next(self) -> tuple[TrainingDocument, ...]:
        """Return the documents of the next pack; none after the last epoch.

        Raises:
            DataError: more samples had to be skipped than the run allows, or a whole epoch of them.
        """
        barren = 0
        while self._end is None or self._position < self._end:
            document = self._encode(self._position)
            self._position += 1
            barren = 0 if document else barren + 1
            if barren > self.mixture.epoch_length:
                raise DataError(f"none of the {self.mixture.epoch_length} samples of an epoch can be used; {FIND_ALL}")
            if document and (pack := self._packer.add(document)):
                return tuple(pack.items)
        pack = self._packer.last()
        return () if pack is None else tuple(pack.items)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last pack; plain JSON."""
        return {
            "position": self._position,
            "open": [[self._position_of(document) for document in pack.items] for pack in self._packer.open],
            "skipped": dict(self._skipped.counts),
            "mixture": self.mixture.fingerprint(),
            "data": self._described,
        }

    @cached_property
    def _described(self) -> dict[str, Any]:
        return {dataset.name: asdict(DataState.of(dataset)) for dataset in self.mixture.datasets}

    def _position_of(self, document: TrainingDocument) -> int:
        """Return where a document stands in the stream of samples; its draws are keyed by that."""
        _, epoch, number = document.key
        return epoch * self.mixture.epoch_length + number

    def _encode(self, position: int) -> TrainingDocument | None:
        """Return the document at a position of the stream, None for a sample that cannot be used."""
        dataset, line, epoch, number = self.mixture.locate(position)
        try:
            return self._encoder.document(dataset, line, epoch, number)
        except DataError as error:
            self._skipped.skip(dataset.id_of(line), error)
            return None
        finally:
            self._name_unread(dataset, line)

    def _name_unread(self, dataset: Dataset, line: int) -> None:
        """Log each field that no code reads once, where it is met first."""
        known = self._unread.setdefault(dataset.name, set())
        if len(dataset.unread) > len(known):
            new = [name for name in dataset.unread if name not in known]
            known.update(new)
            if not self._skipped.quiet:
                fields = ", ".join(repr(printable(name)[:40]) for name in new)
                _log.warning("%s: not read, of this line and others perhaps: %s", dataset.id_of(line), fields)

    def _restore(self, state: dict[str, Any]) -> None:
        there = PackPlanState.read(state)
        self._compare(there)
        self._position = there.position
        for positions in there.open:
            pack: Pack[TrainingDocument] = Pack()
            for position in positions:
                if (document := self._encode(position)) is not None:
                    pack.add(document)
            if pack.items:
                self._packer.open.append(pack)

    def _compare(self, there: PackPlanState) -> None:
        """Compare the data of a run that goes on with what it had.

        Raises:
            ConfigError: another order of samples, or an annotation file that was edited.
        """
        changes, ours = self._changes(there.data), self.mixture.fingerprint()
        if ours != there.mixture:
            listed = [what for change in changes for what in change.of_order()]
            why = f"{_first_of(listed)}; " if listed else ""
            raise ConfigError(
                "the checkpoint was trained on other data, and cannot go on with this: "
                f"{why}it had {there.mixture}, now {ours}. {_GO_ON}"
            )
        for change in changes:
            for name, (before, now) in change.settings.items():
                if not self._skipped.quiet:
                    _log.warning("data set %r: %s was %s, is now %s", change.dataset, name, before, now)
        if edited := [change.edited for change in changes if change.edited]:
            raise ConfigError(
                f"changed since the checkpoint was saved, though it has as many lines: {_first_of(edited)}. {_GO_ON}"
            )

    def _changes(self, before: dict[str, DataState]) -> list[_Change]:
        """Return the data sets that are not what they were, as far as the state of an earlier run says."""
        now = {dataset.name: dataset for dataset in self.mixture.datasets}
        if not before:  # a state of an older version
            return []
        found = [
            _Change(name, "is new" if name in now else "is gone")
            for name in {**before, **now}
            if name not in before or name not in now
        ]
        for name, dataset in now.items():
            if (then := before.get(name)) is None:
                continue
            state = DataState.of(dataset)
            was, is_now = ({"image_operations": [], **which.settings} for which in (then, state))
            changed = {
                setting: (was[setting], value)
                for setting, value in is_now.items()
                if setting in was and was[setting] != value
            }
            edited = (
                f"{printable(dataset.annotation)} (data set {name!r})" if then.annotation != state.annotation else ""
            )
            if edited or changed:
                found.append(_Change(name, edited=edited, settings=changed))
        return found


@dataclass(frozen=True)
class _Change:
    """How a data set differs from the one of an earlier run."""

    dataset: str
    presence: str = ""
    """`is new` or `is gone`; empty for one that is in both data lists."""
    edited: str = ""
    """The annotation file and its data set, where the file was edited."""
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Fields of its entry that have another value: before, now."""

    def of_order(self) -> Iterator[str]:
        """Yield, in words, the changes that alter the order of samples."""
        if self.presence:
            yield f"data set {self.dataset!r} {self.presence}"
        if self.edited:
            yield f"{self.edited} was edited"
        for name, (before, now) in self.settings.items():
            if name in _SHARES:
                yield f"data set {self.dataset!r}: {name} was {before}, is now {now}"


def _first_of(found: Sequence[str]) -> str:
    """Return the first of several findings, and how many more there are."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(found[:_SHOWN])}{more}"
