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
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.packing.balance import round_robin
from megatron_v2pe.data.packing.online import BestFitPacker, Pack
from megatron_v2pe.data.types import Document
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
    "Put back the data list and the annotations the run was started with; to train on with other data, start a new "
    "run from this one: --model_name_or_path RUN --checkpoint.save OTHER"
)
_SHOWN = 3
_log = get_logger(__name__)

_Position = Annotated[int, Range(0)]


@dataclass(frozen=True)
class DataState:
    """What a run has read of one data set, to be compared when it goes on."""

    annotation: str
    """XXH3-128 of all bytes of its annotation file: 32 hexadecimal digits."""
    settings: dict[str, Any]
    """How its entry of the data list has samples read; where its files lie is no matter."""

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
    """In the stream of samples."""
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


@dataclass(frozen=True)
class Placed:
    """A document and where it stood in the stream."""

    position: int
    document: Document

    @property
    def num_tokens(self) -> int:
        """Length in tokens."""
        return self.document.num_tokens

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        return self.document.num_tiles


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
            state: of an earlier run.
            epochs: after so many the packs still open are given out, then empty ones without end: each sample is seen
                as often as that says. None: the stream goes on, and packs hold samples of two epochs where one ends.

        Raises:
            ConfigError: the state belongs to other data or another seed.
        """
        config = encoder.config
        self._mixture, self._encoder, self._skipped = mixture, encoder, skipped
        self._packer: BestFitPacker[Placed] = BestFitPacker(
            config.max_packed_tokens, config.num_images_expected, config.max_buffer_size
        )
        self._unread: dict[str, set[str]] = {}
        self._position = 0
        self._end = None if epochs is None else ceil(round(epochs * mixture.epoch_length, 6))
        if state is not None:
            self._restore(state)

    def __iter__(self) -> Iterator[tuple[Document, ...]]:
        """Yield packs without end."""
        while True:
            yield self.next()

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch."""
        return self._mixture.epoch_length

    @property
    def num_sets(self) -> int:
        """Data sets."""
        return len(self._mixture.datasets)

    def step(self, packs: int) -> list[tuple[Document, ...]]:
        """Return the packs of the next step; errors as of `next`."""
        return [self.next() for _ in range(packs)]

    def deal(self, packs: Sequence[tuple[Document, ...]], ranks: int) -> list[list[int]]:
        """Deal the packs of a step out to ranks in turn."""
        return round_robin(len(packs), ranks)

    def next(self) -> tuple[Document, ...]:
        """Return the documents of the next pack; none after the last epoch.

        Raises:
            DataError: more samples had to be skipped than the run allows, or a whole epoch of them.
        """
        barren = 0
        while self._end is None or self._position < self._end:
            placed = self._encode(self._position)
            self._position += 1
            barren = 0 if placed else barren + 1
            if barren > self._mixture.epoch_length:
                raise DataError(f"none of the {self._mixture.epoch_length} samples of an epoch can be used")
            if placed and (pack := self._packer.add(placed)):
                return tuple(item.document for item in pack.items)
        pack = self._packer.last()
        return () if pack is None else tuple(item.document for item in pack.items)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last pack; plain JSON."""
        return {
            "position": self._position,
            "open": [[item.position for item in pack.items] for pack in self._packer.open],
            "skipped": dict(self._skipped.counts),
            "mixture": self._mixture.fingerprint(),
            "data": self._described,
        }

    @cached_property
    def _described(self) -> dict[str, Any]:
        return {dataset.name: asdict(DataState.of(dataset)) for dataset in self._mixture.datasets}

    def _encode(self, position: int) -> Placed | None:
        dataset, line, epoch, number = self._mixture.locate(position)
        try:
            return Placed(position, self._encoder.document(dataset, line, epoch, number))
        except DataError as error:
            self._skipped.skip(dataset.id_of(line), error)
            return None
        finally:
            self._tell_unread(dataset, line)

    def _tell_unread(self, dataset: Dataset, line: int) -> None:
        """Name each field that nobody reads once, where it is met first."""
        known = self._unread.setdefault(dataset.name, set())
        if len(dataset.unread) > len(known):
            new = [name for name in dataset.unread if name not in known]
            known.update(new)
            if not self._skipped.quiet:
                fields = ", ".join(repr(printable(name)[:40]) for name in new)
                _log.warning("%s: not read, of this line and others perhaps: %s", dataset.id_of(line), fields)

    def _restore(self, state: dict[str, Any]) -> None:
        there, ours = PackPlanState.read(state), self._mixture.fingerprint()
        if ours != there.mixture:
            raise ConfigError(
                "the checkpoint was trained on other data, and cannot go on with this: "
                f"{self._differences(there.data)}it had {there.mixture}, now {ours}. {_GO_ON}"
            )
        self._compare(there.data)
        self._position = there.position
        for positions in there.open:
            pack: Pack[Placed] = Pack()
            for position in positions:
                if (placed := self._encode(position)) is not None:
                    pack.add(placed)
            if pack.items:
                self._packer.open.append(pack)

    def _differences(self, before: dict[str, DataState]) -> str:
        """Say which data sets another order comes from, as far as the state tells."""
        found, now = list[str](), {dataset.name: dataset for dataset in self._mixture.datasets}
        for name in (name for name in {**before, **now} if before and (name not in before or name not in now)):
            found.append(f"data set {name!r} {'is new' if name in now else 'is gone'}")
        for name, dataset in now.items():
            if (then := before.get(name)) is None:
                continue
            if then.annotation != dataset.checksum:
                found.append(f"{printable(dataset.annotation)} (data set {name!r}) was edited")
            for share in _SHARES:
                if share in then.settings and then.settings[share] != (value := getattr(dataset, share)):
                    found.append(f"data set {name!r}: {share} was {then.settings[share]}, is now {value}")
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"{', '.join(found[:_SHOWN])}{more}; " if found else ""

    def _compare(self, before: dict[str, DataState]) -> None:
        """Compare the annotations and the data list with those of an earlier run."""
        edited = list[str]()
        for dataset in self._mixture.datasets:
            if (then := before.get(dataset.name)) is None:
                continue
            now = DataState.of(dataset)
            if then.annotation != now.annotation:
                edited.append(f"{printable(dataset.annotation)} (data set {dataset.name!r})")
            for name, value in now.settings.items():
                if name in then.settings and then.settings[name] != value and not self._skipped.quiet:
                    _log.warning("data set %r: %s was %s, is now %s", dataset.name, name, then.settings[name], value)
        if edited:
            raise ConfigError(
                f"changed since the checkpoint was saved, though it has as many lines: {', '.join(edited[:_SHOWN])}"
                f"{f' and {len(edited) - _SHOWN} more' if len(edited) > _SHOWN else ''}. {_GO_ON}"
            )
