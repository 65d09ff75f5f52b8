"""What can be known of a run before it starts: its checkpoint, layout, folders and data, by what training itself uses.

Nothing is written, converted or loaded. A dry run prints all that was found; a launcher refuses what training would
refuse, before it starts any process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from megatron_v2pe.base.config_tree import get_path
from megatron_v2pe.checkpoint.adapters import check_resumed
from megatron_v2pe.checkpoint.folder import newest
from megatron_v2pe.checkpoint.growth import Growth
from megatron_v2pe.checkpoint.resolve import find_checkpoint, has_weights, look_for_checkpoint, resume_folder
from megatron_v2pe.data.data_list import read_entries, read_entry, where_lists_are
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.indexed.layout import Manifest
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError, V2PEError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_folder import has_tokenizer
from megatron_v2pe.foreign.tokenizer_settings import MODEL
from megatron_v2pe.models.config import InternVLConfig, layout_of
from megatron_v2pe.models.native_config import ORIGINAL
from megatron_v2pe.models.presets import preset_config, preset_named
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.new_tokens import check_goes_on, growth_of_run, pieces_in_words, rows_to_learn, with_growth
from megatron_v2pe.train.preflight.checkpoint import (
    MODEL_SETTING,
    changes_from_before,
    changes_from_start,
    check_checkpoint,
    check_model,
    check_stated,
    tiling_not_exported,
    unlike_preset,
)
from megatron_v2pe.train.preflight.data import look_at_indexed, look_at_list
from megatron_v2pe.train.preflight.findings import Findings
from megatron_v2pe.train.preflight.validation import look_at_validation
from megatron_v2pe.train.writers import check_writers

NAMED = (
    "model.model_name_or_path",
    "model.tokenizer_path",
    "data.meta_path",
    "data.indexed_path",
    "checkpoint.load",
    "validation.meta_path",
)
"""Settings that name what has to be there."""
MOST_BYTES = 256 << 20
"""Annotations of a data list up to so large together are read before a launcher starts a run."""
MOST_SAMPLES = 200_000
"""An indexed data set of up to so many samples is planned before a launcher starts a run."""


def inspect_run(config: ExperimentConfig, recipe: ExperimentConfig | None = None, ranks: int | None = None) -> Findings:
    """Look at everything of a run that can be looked at before it is started.

    Args:
        config: settings of the run, checked.
        recipe: settings that a recipe gave; what these name may still be missing.
        ranks: number of ranks of the run; None where none is named.
    """
    found = Findings(config)
    may_come = {name for name in NAMED if recipe is not None and get_path(config, name) == get_path(recipe, name)}
    found.attempt(lambda: _positions(found, may_come))
    config = found.config
    if config.model.preset is not None and not os.path.lexists(config.model.model_name_or_path):
        found.attempt(lambda: _preset(found, ranks))
    elif not _expected(found, MODEL_SETTING, may_come, found.unseen, "the layout against the model"):
        found.attempt(lambda: _checkpoint(found, ranks))
    found.attempt(lambda: _run_folder(found, may_come))
    if config.data.indexed_path:
        if not _expected(found, "data.indexed_path", may_come, found.unseen, "the data"):
            found.attempt(lambda: look_at_indexed(found))
    elif not _expected(found, "data.meta_path", may_come, found.unseen, "the data"):
        found.attempt(lambda: look_at_list(found))
    listed = bool(config.validation.meta_path)
    if "the data" not in found.unseen and not (
        listed and _expected(found, "validation.meta_path", may_come, found.unseen, "the validation data")
    ):
        found.attempt(lambda: look_at_validation(found))
    found.attempt(lambda: check_writers(config.logging))
    found.attempt(lambda: _benchmarks(found))
    return found


def check_run(config: ExperimentConfig, processes: int) -> None:
    """Refuse a run whose checkpoint, data, packages or folder would end it.

    Args:
        config: settings of the run, checked.
        processes: number of processes of the run.

    Raises:
        V2PEError: names what is missing and where it comes from; all that was found at once.
        OSError: a file that may not be read.
    """
    problems = inspect_run(config, ranks=processes).problems if _small(config) else list(_missing(config))
    if len(problems) > 1:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    if problems:
        raise problems[0]


def _small(config: ExperimentConfig) -> bool:
    """Tell whether data can be looked at without a wait: a list's lines are read to be counted, a set is planned."""
    try:
        if config.data.indexed_path:
            return Manifest.read(Path(config.data.indexed_path)).counts["samples"] <= MOST_SAMPLES
        entries = read_entries(config.data.meta_path).items()
        lists = [read_entry(name, entry, config.data.meta_path) for name, entry in entries]
        return sum(os.path.getsize(dataset.annotation) for dataset in lists) <= MOST_BYTES
    except (V2PEError, OSError):
        return True  # whoever looks says what is wrong


def _missing(config: ExperimentConfig) -> Iterator[V2PEError | OSError]:
    """Yield what is missing and can be seen without reading the data."""
    for work in (lambda: check_checkpoint(config), lambda: check_writers(config.logging), lambda: _chosen(config)):
        try:
            work()
        except (V2PEError, OSError) as error:
            yield error


def _benchmarks(found: Findings) -> None:
    """Look at the benchmarks that are asked while training."""
    if names := _chosen(found.config):
        found.right.append(f"evaluation: data of {', '.join(names)}")


def _chosen(config: ExperimentConfig) -> list[str]:
    """Return the names of the benchmarks that are asked while training, whose data are there."""
    if not config.evaluation.benchmarks:
        return []
    from megatron_v2pe.train.evaluation.benchmarks import chosen

    return [benchmark.name for benchmark in chosen(config.evaluation)]


def _expected(found: Findings, name: str, may_come: set[str], unseen: list[str], what: str) -> bool:
    """Note a path that a recipe names and that is not there yet; return whether this is one."""
    path = get_path(found.config, name)
    if name not in may_come:
        return False
    if name == MODEL_SETTING and (os.path.isdir(path) or not os.path.lexists(path)):  # a run that has not saved yet
        if look_for_checkpoint(Path(path), MODEL_SETTING) is not None:
            return False
        try:
            find_checkpoint(path, MODEL_SETTING)
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
        found.config = found.config.with_recorded_strides()


def _preset(found: Findings, ranks: int | None) -> None:
    """Look at the published model that is named in place of a checkpoint which is not there yet."""
    settings = found.config.model
    name = preset_named(str(settings.preset))
    found.model = InternVLConfig.from_hf(preset_config(name), f"preset {name}")
    check_stated(found.model, settings, found.config.data)
    found.right.append(f"model: the published shape of {name} (model.preset)")
    path = printable(settings.model_name_or_path) or "no folder is named"
    found.absent.append(f"{MODEL_SETTING} {path}: the checkpoint, whose config.json will count")
    found.unseen += ["tokenizer", "template", "weights"]
    found.attempt(lambda: _layout(found, ranks))
    found.attempt(lambda: _adapters(found, ORIGINAL))


def _checkpoint(found: Findings, ranks: int | None) -> None:
    """Look at the checkpoint: architecture, what the run states of it, layout, tokenizer, template, weights."""
    config = found.config
    place, found.model = check_model(config)
    kind = "an HF checkpoint" if place.is_hf else "a Megatron checkpoint"
    found.right.append(f"model: {printable(place.folder)}, {kind} of a supported architecture")
    found.doubts += unlike_preset(found.model, config.model.preset)
    found.attempt(lambda: _layout(found, ranks))
    found.attempt(lambda: _adapters(found, layout_of(place.hf)))
    if config.model.tokenizer_path is None and not has_tokenizer(place.hf):
        found.absent.append(f"{printable(place.hf / MODEL)}: the tokenizer's files, or those of another kind")
        found.unseen += ["tokenizer", "template"]
    else:
        found.attempt(lambda: _tokenizer(found, place.hf))
    if not place.is_hf:
        found.attempt(lambda: _vetted(found, place.folder))
    elif not has_weights(place.folder):
        found.absent.append(f"{printable(place.folder)}: the weights, *.safetensors")
    else:
        found.attempt(lambda: _weights(found, place.folder))


def _adapters(found: Findings, layout: str) -> None:
    if not found.config.adapter.is_on:
        return
    from megatron_v2pe.train.adapter_plan import plan_of

    assert found.model is not None
    config = found.config
    found.adapters = plan_of(config.adapter, found.model, layout, config.train.seed, config.model.unfreeze_vit_layers)
    assert found.adapters is not None
    found.right.append(f"adapters: {len(found.adapters.pieces)} linears are targets, none narrower than its rank")
    if (start := found.config.adapter.start) is not None:
        from megatron_v2pe.train.adapter_start import starting_tensors

        count = len(starting_tensors(start, found.adapters, found.model))
        found.right.append(f"adapters begin with those of {start}: {count} tensors")


def _layout(found: Findings, ranks: int | None) -> None:
    from megatron_v2pe.models.build import model_sizes

    assert found.model is not None
    found.config.parallel.validate(ranks, model_sizes(found.model))
    found.right.append("layout: it divides the model's heads, layers, widths and vocabulary")


def _tokenizer(found: Findings, hf: Path) -> None:
    model = check_checkpoint(found.config)
    config = found.config = found.config.with_template(model.template)
    tokenizer = Tokenizer.of_model(config.model.tokenizer_path or hf, model.llm.vocab_size)
    growth = growth_of_run(config.model.add_tokens, model, tokenizer, config.data.template_name)
    found.model, tokenizer = model, tokenizer = with_growth(growth, model, tokenizer)
    if growth is not None:
        found.right.append(f"{printable(str(config.model.add_tokens))}: {growth.in_words()}")
        found.right.append(pieces_in_words(growth))
    if config.model.train_new_tokens:
        rows_to_learn(hf, growth)
    _goes_on(found, hf, growth)
    facts = ModelFacts(model.tile_size, model.tokens_per_tile)
    seed = config.train.seed
    found.encoder = DocumentEncoder(config.data, tokenizer, facts, config.v2pe.policy(seed), seed)
    found.right.append(f"tokenizer of {len(tokenizer):,} tokens, template {config.data.template_name}")
    found.doubts += [*changes_from_start(config), *tiling_not_exported(config.data)]


def _goes_on(found: Findings, hf: Path, growth: Growth | None) -> None:
    """Look at whether the tokens are those of the checkpoint that the run would go on from, where there is one."""
    settings = found.config.checkpoint
    with suppress(V2PEError):  # `_run_folder` says what is wrong
        latest = resume_folder(settings.save, settings.load, settings.resume)
        if latest is not None:
            found.attempt(lambda: check_goes_on(hf, growth, latest, found.config.model.add_tokens))


def _vetted(found: Findings, folder: Path) -> None:
    from megatron_v2pe.checkpoint.vet import vet_checkpoint

    vet_checkpoint(folder, verify=False)
    found.right.append("weights: their description, and the sizes of their files")


def _weights(found: Findings, folder: Path) -> None:
    from megatron_v2pe.checkpoint.hf.hf_to_mcore import open_folder

    count = len(open_folder(folder).files.places())
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
        found.doubts += changes_from_before(found.config, latest)
        if "weights" not in found.unseen and found.config.adapter.is_on == (found.adapters is not None):
            check_resumed(latest, None, found.adapters)


def _check_writable(folder: Path) -> None:
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise ConfigError(f"checkpoint.save {printable(folder)}: {printable(nearest)} is a file, expected a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"checkpoint.save {printable(folder)}: {printable(nearest)} cannot be written to")
