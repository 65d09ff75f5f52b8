"""Settings of a run compared with the checkpoint it starts from, before anything is converted or trained.

A model is asked as it was trained: its export carries positions, template and tiles of the run in `config.json`, see
`checkpoint.trained`. What no export can carry has to be as the checkpoint has it: sizes of the model, the tokenizer.
A setting with which the trained model could not be asked is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron_v2pe.checkpoint.folder import ADAPTER_FILE, iterations
from megatron_v2pe.checkpoint.resolve import FoundCheckpoint, find_checkpoint
from megatron_v2pe.checkpoint.trained import CARRIED, differing, trained_config
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import TEMPLATES
from megatron_v2pe.data.data_list import read_entries
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError, V2PEError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.presets import preset_config, preset_named
from megatron_v2pe.train.config import ExperimentConfig, ModelConfig
from megatron_v2pe.v2pe.settings import StridePolicy, V2PESettings, usual_stride

MODEL_SETTING = "model.model_name_or_path"


def check_model(config: ExperimentConfig) -> tuple[FoundCheckpoint, InternVLConfig]:
    """Return the checkpoint a run starts from and its model, compared with what the run states of it.

    Raises:
        ConfigError: there is no checkpoint, its architecture is not supported, or the run states something of it that
            is not so.
        CheckpointError: the checkpoint is a run's, and its state is lost or damaged.
    """
    place = _start(config)
    if (place.folder / ADAPTER_FILE).is_file():
        raise ConfigError(
            f"{MODEL_SETTING} {printable(place.folder)}: holds adapters and not the weights they belong to; merge them "
            "first (tools/merge_adapter.py), or name their base"
        )
    model = InternVLConfig.from_hf(trained_config(place.folder), printable(place.hf / "config.json"))
    check_stated(model, config.model, config.data)
    return place, model


def _start(config: ExperimentConfig) -> FoundCheckpoint:
    """Find the checkpoint a run starts from; where it is gone, a run that has saved can go on from its own."""
    if not config.model.model_name_or_path:
        raise ConfigError(
            f"{MODEL_SETTING} is empty: model.preset {config.model.preset} says how large a model is, and has no "
            "weights; name a checkpoint, or look with --dry-run"
        )
    try:
        return find_checkpoint(config.model.model_name_or_path, MODEL_SETTING)
    except ConfigError as error:
        save = config.checkpoint.save
        if Path(config.model.model_name_or_path).exists() or save is None or not iterations(Path(save)):
            raise
        own = printable(save)
        raise ConfigError(
            f"{error}; the run in {own} has configuration and tokenizer of its own, to go on with those: "
            f"--model.model-name-or-path {own}"
        ) from error


def check_checkpoint(config: ExperimentConfig) -> InternVLConfig:
    """Compare a run's settings with the checkpoint it starts from; return the model, no weights are read.

    Raises:
        ConfigError: there is no checkpoint, its architecture is not supported, or the run states something of it that
            is not so; a template or a tokenizer with which the trained model could not be asked.
        CheckpointError: the checkpoint is a run's, and its state is lost or damaged.
    """
    place, model = check_model(config)
    path = printable(place.hf / "config.json")
    if model.template not in TEMPLATES:
        raise ConfigError(
            f"{path}: conversation template {model.template!r} is none of {', '.join(TEMPLATES)}, so that the "
            f"checkpoint could not be asked; to train it with data.template {config.data.template_name}, write that "
            'into the file ("template")'
        )
    tokenizer = Tokenizer.of_model(place.hf, model.llm.vocab_size, config.data.template or model.template)
    if config.model.tokenizer_path is not None:
        given = Tokenizer.of_model(config.model.tokenizer_path, model.llm.vocab_size)
        if given.fingerprint != tokenizer.fingerprint:
            raise ConfigError(
                f"model.tokenizer_path {printable(config.model.tokenizer_path)}: gives other ids than the tokenizer in "
                f"{printable(place.hf)}, which goes into every export and with which the model would be asked; put its "
                "files into the checkpoint's folder, or leave the setting out"
            )
    return model


def check_stated(model: InternVLConfig, settings: ModelConfig, data: DataConfig) -> None:
    """Check what a run states about its checkpoint.

    Raises:
        ConfigError: the model has something else; names both.
    """
    stated: dict[str, Any] = {
        "ps_version": settings.ps_version,
        "downsample_ratio": settings.down_sample_ratio,
        "select_layer": settings.vision_select_layer,
        "tile_size": data.force_image_size,
    }
    for name, value in stated.items():
        if value is not None and value != getattr(model, name):
            raise ConfigError(
                f"{name} {value} was asked for, but the checkpoint has {getattr(model, name)}; "
                "it is part of the model, to be changed in its config.json"
            )


def unlike_preset(model: InternVLConfig, preset: str | None) -> Iterator[str]:
    """Yield a line where a checkpoint is not of the size that a run's preset names; the checkpoint counts.

    Args:
        model: the checkpoint's.
        preset: `model.preset` of the run.
    """
    if preset is None:
        return
    name = preset_named(preset)
    stated = InternVLConfig.from_hf(preset_config(name), f"preset {name}")
    pairs = {
        f"{section}.{one.name}": (
            getattr(getattr(stated, section), one.name),
            getattr(getattr(model, section), one.name),
        )
        for section in ("llm", "vision")
        for one in fields(getattr(stated, section))
        if one.type in ("int", int)
    }
    if differing := [f"{name} {found} (preset {said})" for name, (said, found) in pairs.items() if said != found]:
        yield f"model.preset {name} is not what the checkpoint is, which counts: {', '.join(differing)}"


def changes_from_start(config: ExperimentConfig) -> Iterator[str]:
    """Yield a line for what the run does otherwise than the checkpoint it starts from, or is asked by itself.

    Args:
        config: settings of a run whose checkpoint was checked.
    """
    stated = trained_config(find_checkpoint(config.model.model_name_or_path, MODEL_SETTING).folder)
    policy = _policy(config)
    if changed := _changed(config, stated):
        yield f"trained, and to be asked, otherwise than the checkpoint it starts from: {', '.join(changed)}"
    usual = usual_stride(InternVLConfig.from_hf(stated).tokens_per_tile)
    if policy is not None and policy.version == "v2pe_rnd" and usual not in policy.strides:
        yield (
            f"v2pe.strides {', '.join(map(str, policy.strides))}: without {usual}, at which a checkpoint of v2pe_rnd "
            "is asked unless a stride is named; name one of them when it is asked (--rope_pos_id_stride)"
        )


def changes_from_before(config: ExperimentConfig, resumed: Path) -> Iterator[str]:
    """Yield a line for what a run does from now on otherwise than it did so far.

    Args:
        config: settings of a run whose checkpoint was checked.
        resumed: the training checkpoint it goes on from.
    """
    try:
        before = trained_config(resumed)
    except V2PEError:  # how it was trained is not known, and not needed to go on
        return
    if changed := _changed(config, before):
        yield (
            f"goes on otherwise than {printable(resumed)} was trained: {', '.join(changed)}; to train on as "
            "before, give it the values in brackets"
        )


def _changed(config: ExperimentConfig, stated: Mapping[str, Any]) -> list[str]:
    """Return what a run does otherwise than a `config.json` states."""
    changed = [
        f"{name} {_shown(value)} (was {_shown(stated.get(name) if stated.get(name) is not None else CARRIED[name])})"
        for name, value in differing(stated, asdict(config.data)).items()
    ]
    before, recorded = V2PESettings.from_config(stated), config.v2pe.rope_pos_id_version == "recorded"
    if not recorded and (now := config.v2pe.in_config) != before:
        changed.append(f"positions {_positions(now)} (was {_positions(before)})")
    return changed


def _policy(config: ExperimentConfig) -> StridePolicy | None:
    """Return a run's positions, None where an indexed data set that was not looked at says them."""
    return None if config.v2pe.rope_pos_id_version == "recorded" else config.v2pe.policy()


def tiling_not_exported(data: DataConfig) -> Iterator[str]:
    """Yield a line where every data set has its own tiles, so that the run's, which are exported, hold for none."""
    if not data.meta_path:
        return
    try:
        entries = list(read_entries(data.meta_path).values())
    except V2PEError:  # whoever opens the data says what is wrong
        return
    own = [entry.get("max_dynamic_patch") for entry in entries if isinstance(entry, Mapping)]
    dynamic = [entry.get("dynamic_image_size") for entry in entries if isinstance(entry, Mapping)]
    most = max((value for value in own if isinstance(value, int)), default=None)
    if not data.dynamic_image_size:
        return
    if dynamic and all(value is False for value in dynamic):
        yield (
            f"{printable(data.meta_path)}: every data set has dynamic_image_size false, but the model will be asked "
            "with data.dynamic_image_size true; set that to false to have it asked as it was trained"
        )
    elif None not in own and most not in (None, data.max_dynamic_patch):
        yield (
            f"{printable(data.meta_path)}: every data set has a max_dynamic_patch of its own, {most} at most, but the "
            f"model will be asked with data.max_dynamic_patch {data.max_dynamic_patch}; set that to {most} to have it "
            "asked as it was trained"
        )


def _positions(settings: V2PESettings) -> str:
    version, stride = settings.rope_pos_id_version, settings.stride
    return version if stride is None else f"{version} at stride {stride}"


def _shown(value: object) -> str:
    return "not stated" if value is None else printable(str(value))[:80]
