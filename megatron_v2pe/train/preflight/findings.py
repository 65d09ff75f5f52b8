"""What can be known of a run before it is started: its checkpoint, data, layout and folders, by what training uses.

Nothing is written, converted or loaded. Four kinds of things are found: what was looked at and is right, what a recipe
names and is not there yet, what a user may not have meant, and what a run would be refused for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_v2pe.checkpoint.folder import newest
from megatron_v2pe.checkpoint.place import find_checkpoint, has_weights, look_for_checkpoint
from megatron_v2pe.checkpoint.resolve import resume_folder
from megatron_v2pe.data.annotations import Dataset, read_data_list, where_lists_are
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.indexed.plan import IndexedPlan, draw_document
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.plan import PackPlan
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Clip, Picture
from megatron_v2pe.errors import ConfigError, DataError, V2PEError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_files import MODEL
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.train.preflight.checkpoint import (
    SAID,
    check_checkpoint,
    check_model,
    what_changes,
    what_holds,
    what_is_lost,
)
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.epochs import check_countable
from megatron_v2pe.train.metrics import check_wandb
from megatron_v2pe.train.recorded import with_recorded_strides

MOST_SAMPLES, FEWEST_OF_A_SET = 64, 8
"""Samples that are read, over all data sets, and of each one of them at least."""
NAMED = ("model.model_name_or_path", "model.tokenizer_path", "data.meta_path", "data.indexed_path", "checkpoint.load")
"""Settings that name what has to be there."""
_NOT_LOOKED_AT = "values of the weights, pixels, other samples, the cards and processes of the run, room on the disk"


@dataclass
class Findings:
    """What was found of a run."""

    config: ExperimentConfig
    """Its settings, the positions of an indexed set filled in."""
    model: InternVLConfig | None = None
    """Of its checkpoint, where that can be read."""
    encoder: DocumentEncoder | None = None
    """What makes documents of samples, where there is a tokenizer as well."""
    iteration: int = 0
    """Steps done by the checkpoint the run would go on from."""
    loader_state: dict[str, Any] | None = None
    """Of the data, in that checkpoint."""
    right: list[str] = field(default_factory=list)
    """What was looked at."""
    absent: list[str] = field(default_factory=list)
    """What a recipe names, or what belongs into a folder that is there, and may still come."""
    doubts: list[str] = field(default_factory=list)
    """What a run would do, and a user may not have meant."""
    problems: list[V2PEError | OSError] = field(default_factory=list)
    """What the run would be refused for."""
    unseen: list[str] = field(default_factory=list)
    """What could not be looked at, for something else is missing."""

    def lines(self) -> Iterator[str]:
        """Yield all of it as text."""
        yield "looked at:"
        yield from (f"  {line}" for line in self.right)
        if self.absent:
            yield "not there yet:"
            yield from (f"  {line}" for line in self.absent)
        if self.doubts:
            yield "not refused, but worth a look:"
            yield from (f"  {line}" for line in self.doubts)
        if self.problems:
            yield "the run would be refused:"
            yield from (f"  {problem}" for problem in self.problems)
        yield f"not looked at: {', '.join([*self.unseen, _NOT_LOOKED_AT])}"


def look(config: ExperimentConfig, recipe: ExperimentConfig | None = None, ranks: int | None = None) -> Findings:
    """Look at everything of a run that can be looked at before it is started.

    Args:
        config: of the run, checked by itself.
        recipe: settings that a recipe gave; what these name may still be missing.
        ranks: of the run, None where nobody has said.
    """
    found = Findings(config)
    may_come = {name for name in NAMED if recipe is not None and _setting(config, name) == _setting(recipe, name)}
    _try(found, lambda: _positions(found, may_come))
    config = found.config
    if not _expected(found, "model.model_name_or_path", may_come, found.unseen, "the layout against the model"):
        _try(found, lambda: _checkpoint(found, ranks))
    _try(found, lambda: _run_folder(found, may_come))
    if config.data.indexed_path:
        if not _expected(found, "data.indexed_path", may_come, found.unseen, "the data"):
            _try(found, lambda: _indexed(found))
    elif not _expected(found, "data.meta_path", may_come, found.unseen, "the data"):
        _try(found, lambda: _data_list(found))
    _try(found, lambda: check_wandb(config.logging))
    return found


def _try(found: Findings, work: Callable[[], None]) -> None:
    try:
        work()
    except (V2PEError, OSError) as error:
        found.problems.append(error)


def _setting(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _expected(found: Findings, name: str, may_come: set[str], unseen: list[str], what: str) -> bool:
    """Take note of what a recipe names and is not there; tell whether it is such a path."""
    path = _setting(found.config, name)
    if name not in may_come:
        return False
    if name == SAID and (os.path.isdir(path) or not os.path.lexists(path)):  # a run's folder, before it has saved
        if look_for_checkpoint(Path(path), SAID) is not None:
            return False
        try:
            find_checkpoint(path, SAID)
        except V2PEError as error:
            found.absent.append(str(error))
    elif os.path.lexists(path):
        return False
    else:
        source = f"; {where_lists_are(Path(path))}" if name == "data.meta_path" else ""
        found.absent.append(f"{name} {printable(path)}: no such file or folder{source}")
    unseen.append(what)
    return True


def _positions(found: Findings, may_come: set[str]) -> None:
    path = found.config.data.indexed_path
    if not ("data.indexed_path" in may_come and not os.path.lexists(path)):
        found.config = with_recorded_strides(found.config)


def _checkpoint(found: Findings, ranks: int | None) -> None:
    """Look at the checkpoint: architecture, what the run states of it, layout, tokenizer, template, weights."""
    config = found.config
    place, found.model = check_model(config)
    kind = "an HF checkpoint" if place.is_hf else "a Megatron checkpoint"
    found.right.append(f"model: {printable(place.folder)}, {kind} of a supported architecture")
    _try(found, lambda: _layout(found, ranks))
    if config.model.tokenizer_path is None and not (place.hf / MODEL).is_file():
        found.absent.append(f"{printable(place.hf / MODEL)}: the tokenizer's files")
        found.unseen += ["tokenizer", "template"]
    else:
        _try(found, lambda: _tokenizer(found, place.hf))
    if not place.is_hf:
        _try(found, lambda: _vetted(found, place.folder))
    elif not has_weights(place.folder):
        found.absent.append(f"{printable(place.folder)}: the weights, *.safetensors")
    else:
        _try(found, lambda: _weights(found, place.folder))


def _layout(found: Findings, ranks: int | None) -> None:
    from megatron_v2pe.models.build import model_sizes

    assert found.model is not None
    found.config.validate(ranks, model_sizes(found.model))
    found.right.append("layout: it divides the model's heads, layers, widths and vocabulary")


def _tokenizer(found: Findings, hf: Path) -> None:
    config = found.config
    model = check_checkpoint(config)
    tokenizer = Tokenizer.of_model(config.model.tokenizer_path or hf, model.llm.vocab_size)
    facts = ModelFacts(model.tile_size, model.tokens_per_tile)
    seed = config.train.seed
    found.encoder = DocumentEncoder(config.data, tokenizer, facts, config.v2pe.policy(seed), seed)
    found.right.append(f"tokenizer of {len(tokenizer):,} tokens, template {config.data.template}")
    found.doubts += [*what_holds(config), *what_is_lost(config.data)]


def _vetted(found: Findings, folder: Path) -> None:
    from megatron_v2pe.checkpoint.vet import vet_checkpoint

    vet_checkpoint(folder, verify=False)
    found.right.append("weights: their description, and the sizes of their files")


def _weights(found: Findings, folder: Path) -> None:
    from megatron_v2pe.checkpoint.hf.hf_to_mcore import check_folder

    _, _, weights, _ = check_folder(folder)
    count = len(weights.layout.places())
    found.right.append(f"weights: names, shapes and types of {count} tensors")


def _run_folder(found: Findings, may_come: set[str]) -> None:
    """Look at where the run is saved, and what it would go on from."""
    settings = found.config.checkpoint
    save = Path(settings.save) if settings.save else None
    if save is not None:
        _check_writable(save)
    if settings.load is not None and (save is None or newest(save) is None):
        if _expected(found, "checkpoint.load", may_come, found.unseen, "what the run goes on from"):
            return
    latest = resume_folder(settings.save, settings.load, settings.resume)
    if latest is None:
        where = "nothing is saved" if save is None else f"{printable(save)}, new"
        found.right.append(f"run: {where}; it starts from the checkpoint's weights")
        return
    from megatron_v2pe.checkpoint.store import read_training_state

    state = read_training_state(latest)
    found.iteration, found.loader_state = state.iteration, state.loader
    found.right.append(f"run: goes on from {printable(latest)}, step {state.iteration:,}")
    if found.model is not None:
        found.doubts += what_changes(found.config, latest)


def _check_writable(folder: Path) -> None:
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise ConfigError(f"checkpoint.save {printable(folder)}: {printable(nearest)} is a file, expected a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"checkpoint.save {printable(folder)}: {printable(nearest)} cannot be written to")


def _spread(count: int, most: int) -> list[int]:
    """Return so many numbers below `count` at most, the first and the last among them."""
    most = max(most, 2)
    return list(range(count)) if count <= most else sorted({i * (count - 1) // (most - 1) for i in range(most)})


def _data_list(found: Findings) -> None:
    config, encoder = found.config, found.encoder
    datasets = read_data_list(config.data.meta_path)
    mixture = Mixture(datasets, config.train.seed, config.data.use_data_resampling)
    if config.train.epochs is not None:
        _try(found, lambda: check_countable(config.data.meta_path, config.train.epochs or 0, mixture.epoch_length))
    each = max(MOST_SAMPLES // len(datasets), FEWEST_OF_A_SET)
    looked, bad = 0, list[str]()
    for dataset in datasets:
        lines = _spread(len(dataset), each)
        faults = [fault for line in lines if (fault := _fault(dataset, line, encoder)) is not None]
        looked += len(lines)
        bad += faults
        if len(faults) == len(lines):
            _tell_unusable(found, dataset, faults)
    _tell_data(found, config.data.meta_path, len(datasets), mixture.epoch_length, looked, bad)
    if encoder is not None and found.loader_state is not None:
        PackPlan(mixture, encoder, SkipLog(10**12, quiet=True), found.loader_state)


def _tell_unusable(found: Findings, dataset: Dataset, faults: Sequence[str]) -> None:
    """Take note of a data set no sample of which can be used; refuse it where it has more than a run may skip."""
    text = f"dataset {dataset.name!r}: none of the {len(faults)} samples looked at can be used; {faults[0]}"
    if len(dataset) > found.config.data.max_skipped_samples:
        raise DataError(f"{text}; data.max_skipped_samples is {found.config.data.max_skipped_samples}")
    found.doubts.append(text)


def _fault(dataset: Dataset, line: int, encoder: DocumentEncoder | None) -> str | None:
    """Return why a sample cannot be used, as far as can be told without its pixels."""
    try:
        if encoder is not None:
            encoder.encode(dataset, line)
            return None
        sample = dataset.read(line)
        for path in (*sample.images, *([sample.video] if sample.video else [])):
            if not os.path.exists(path):
                raise DataError(f"{printable(path)}: no such file")
    except DataError as error:
        return f"{dataset.id_of(line)}: {error}"
    return None


def _tell_data(found: Findings, path: str, sets: int, samples: int, looked: int, bad: Sequence[str]) -> None:
    """Refuse samples that a run would stop at; where some may be skipped, say how many of those looked at are bad."""
    allowed = found.config.data.max_skipped_samples
    if bad and not allowed:
        raise DataError(
            f"{len(bad)} of {looked} samples looked at cannot be used, data.max_skipped_samples is 0; {bad[0]}; "
            "tools/check_data.py lists all that are missing"
        )
    how = f"{looked} samples read, with their files" + ("" if found.encoder is not None else ", without a tokenizer")
    found.right.append(f"data: {printable(path)}, {sets} set{'s' * (sets > 1)}, {samples:,} samples an epoch; {how}")
    if bad:
        found.doubts.append(
            f"{len(bad)} of {looked} samples cannot be used, data.max_skipped_samples is {allowed}; {bad[0]}"
        )


def _indexed(found: Findings) -> None:
    config, encoder = found.config, found.encoder
    samples = IndexedSamples(config.data.indexed_path)
    if encoder is not None:
        samples.check(config.data, encoder.tokenizer, encoder.facts)
    plan = IndexedPlan(samples, config.data, config.train.seed, SkipLog(10**12, quiet=True), found.loader_state)
    numbers, bad = _spread(len(samples), MOST_SAMPLES), list[str]()
    for number in numbers:
        try:
            for item in samples[number].media:
                if isinstance(item, Picture):
                    samples.files.open_picture(item)
                elif isinstance(item, Clip) and item.file is not None:
                    samples.files.check_video(item.file, item.path)
            if encoder is not None:
                draw_document(samples, encoder, number, 0, number)
        except DataError as error:
            bad.append(f"{samples.source(number)}: {error}")
    _tell_data(found, config.data.indexed_path, plan.num_sets, plan.epoch_length, len(numbers), bad)
