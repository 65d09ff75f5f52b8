"""What the model of a checkpoint was trained with: `config.json` as an export would write it.

A training checkpoint carries in `hf/` the `config.json` its run started from; how it was trained stands in the state of
the run. Every tool that asks, exports or trains on from a checkpoint reads both here. The published
fine-tuning script likewise writes its settings into the `config.json` it saves.

The published code reads `rope_pos_id_version` and `rope_pos_id_stride` at the top and copies the version into
`llm_config`. It also overwrites `llm_config.rope_scaling` by `{"type": "v2pe", ...}` in what it saves, which its own
configuration class then refuses to load. That form is understood here in every spelling, and never exported: where a
`config.json` has it, an export is loadable rather than equal to it to the byte (`loadable`).

All of this speaks of the original form of a `config.json`; one in transformers' native form is translated when it is
read and when it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.checkpoint.folder import DESCRIPTION, HF_FOLDER, TRAINING_STATE
from megatron_v2pe.checkpoint.hf.hf_config import to_text
from megatron_v2pe.checkpoint.low_rank.unmerged import settled_config
from megatron_v2pe.checkpoint.resolve import CONFIG, FoundCheckpoint
from megatron_v2pe.checkpoint.vet import read_description
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config import NORMALIZE_TYPES, InternVLConfig, layout_of, read_config
from megatron_v2pe.models.config_rope import PLACES
from megatron_v2pe.models.native_config import in_layout
from megatron_v2pe.v2pe.settings import VERSIONS, V2PESettings

PUBLISHED_ROPE_SCALING = {"factor": 2.0, "type": "dynamic"}
"""What InternVL2 checkpoints carry; stands in where `v2pe` has overwritten it. Unused under V2PE."""
CARRIED: dict[str, Any] = {
    "template": None,
    "dynamic_image_size": False,
    "dynamic_max_patch": False,
    "use_thumbnail": False,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
    "pad2square": False,
    "min_num_frame": 4,
    "max_num_frame": 20,
    "normalize_type": "imagenet",
}
"""Settings of a run's data that `config.json` states, with what the published class takes where it does not.

All but `normalize_type` are fields of the published class; that one is this project's, and written only where a model
was trained with another than `imagenet`."""


def trained_model(folder: Path) -> InternVLConfig:
    """Return the model of a checkpoint and how it was trained; for arguments and errors see `trained_config`.

    Raises:
        ConfigError: another architecture, or a field that is missing or wrong.
    """
    return InternVLConfig.from_hf(trained_config(folder), printable(FoundCheckpoint.of(folder).hf / CONFIG))


def trained_config(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json` as an export of a checkpoint writes it.

    That of an HF folder and of a converted checkpoint is what the file holds, without the ranks of an adapter that is
    merged when the folder is read. Of a training checkpoint it is what the run started from, with the settings it was
    trained with.

    Args:
        folder: of an HF checkpoint or of one Megatron checkpoint, see `resolve.find_checkpoint`.

    Raises:
        ConfigError: `config.json` cannot be read.
        CheckpointError: the state of the run is missing or damaged, so that it is not known how it was trained.
    """
    place = FoundCheckpoint.of(folder)
    config = read_config(place.hf)
    if place.is_hf:
        return settled_config(folder, config)
    InternVLConfig.from_hf(config, printable(place.hf / CONFIG))  # its sections are there
    if read_description(folder / DESCRIPTION).get("kind") == "converted":
        return config
    path = folder / TRAINING_STATE
    try:
        state = read_description(path)
        settings = _positions(state, printable(path))
        data, vision = _trained_on(state, printable(path)), _vision(state, printable(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; it says with which positions, template and tiles the run was trained: copy the checkpoint "
            "again, or take an older one (its iter_* folder)"
        ) from error
    return as_trained(config, settings, data, vision)


def model_of_run(start: Path, settings: Mapping[str, Any]) -> InternVLConfig:
    """Return the model that `trained_model` will find in checkpoints of a run.

    Args:
        start: the Megatron checkpoint it starts from.
        settings: its resolved configuration, as a checkpoint holds it.

    Raises:
        ConfigError: see `trained_model`.
        CheckpointError: see `trained_model`.
    """
    state, source = {"settings": dict(settings)}, "settings of the run"
    config = as_trained(
        trained_config(start), _positions(state, source), _trained_on(state, source), _vision(state, source)
    )
    return InternVLConfig.from_hf(config, printable(FoundCheckpoint.of(start).hf / CONFIG))


def start_config(checkpoint: Path) -> dict[str, str]:
    """Return the `config.json` for checkpoints of a run, where it is not that of the one the run starts from: a run's.

    What a run does not say, its checkpoints are to say as the model it started from was trained. The file stays in the
    layout, original or native, that it has there.

    Returns:
        Name of the file -> content; nothing where the file is copied as it is.
    """
    stated = trained_config(checkpoint)
    if stated == read_config(checkpoint / HF_FOLDER):
        return {}
    return {f"{HF_FOLDER}/{CONFIG}": to_text(in_layout(stated, layout_of(checkpoint / HF_FOLDER)))}


def stated_by(config: dict[str, Any], settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a `config.json` with what an adapter's settings say of its training; the same object where they say none.

    Args:
        config: of the base.
        settings: sections `v2pe` and `data` of the run's settings, as its state has them.
        source: where they stand, for the error.

    Raises:
        CheckpointError: they are none.
    """
    if "v2pe" not in settings:
        return config
    state = {"settings": dict(settings)}
    try:
        return as_trained(config, _positions(state, source), _trained_on(state, source))
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error


def as_trained(
    config: dict[str, Any],
    settings: V2PESettings | None,
    data: Mapping[str, Any],
    vision: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a `config.json` with what a run was trained with; the same object where nothing of it differs.

    Args:
        config: of the checkpoint the run started from.
        settings: positions; None: not known, those of `config` stay.
        data: values of `CARRIED` that are known.
        vision: values of `vision_config` that are known.
    """
    result = config
    if settings is not None and settings != V2PESettings.from_config(config):
        result = with_settings(config, settings)
    if changed := differing(config, data):
        result = {**result, **changed}
    tower = result.get("vision_config") or {}
    if changed := {name: value for name, value in (vision or {}).items() if tower.get(name, 0.0) != value}:
        result = {**result, "vision_config": {**tower, **changed}}
    return result


def differing(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a run's data of which a `config.json` says something else, or nothing."""
    return {
        name: data[name]
        for name, default in CARRIED.items()
        if data.get(name) is not None and _stated(config, name, default) != data[name]
    }


def _stated(config: Mapping[str, Any], name: str, default: Any) -> Any:
    value = config.get(name)
    return default if value is None else value


def has_v2pe_scaling(config: Mapping[str, Any]) -> bool:
    """Tell whether `llm_config` has the scaling `v2pe`, which the published code saves and cannot load."""
    return any(_is_v2pe(config, name) for name in PLACES)


def loadable(config: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json` that the published classes load; the same object where this one is.

    What stands in place of `v2pe` computes what that did: under V2PE positions no scaling is used, and InternVL2's
    comes back; without them `v2pe` is read as none, which the published classes know as a linear scaling by 1 alone.
    """
    plain = V2PESettings.from_config(config).rope_pos_id_version == "default"
    scaling = {"factor": 1.0, "type": "linear"} if plain else PUBLISHED_ROPE_SCALING
    changed: dict[str, Any] = {}
    for name in PLACES:
        if _is_v2pe(config, name):
            kept = {} if name == "rope_scaling" else {"rope_theta": config["llm_config"][name].get("rope_theta")}
            kind = {} if name == "rope_scaling" else {"rope_type": scaling["type"]}
            whole = {**kept, **scaling, **kind}
            changed[name] = {key: value for key, value in whole.items() if value is not None}
    if changed:  # where transformers 5 has saved it, the older fields are missing, and those are what is read
        llm = config["llm_config"]
        bases = [llm.get("rope_theta"), *((llm.get(name) or {}).get("rope_theta") for name in PLACES)]
        changed["rope_scaling"] = scaling
        if stated := [base for base in bases if base is not None]:
            changed["rope_theta"] = stated[0]
    return config if not changed else {**config, "llm_config": {**config["llm_config"], **changed}}


def _is_v2pe(config: Mapping[str, Any], name: str) -> bool:
    scaling = (config.get("llm_config") or {}).get(name) or {}
    return "v2pe" in (scaling.get("type"), scaling.get("rope_type"))


def with_settings(config: dict[str, Any], settings: V2PESettings) -> dict[str, Any]:
    """Return a `config.json` with V2PE fields; everything else stays, the scaling too unless it is `v2pe`."""
    return settings.written_into(loadable({**config, "rope_pos_id_version": settings.rope_pos_id_version}))


def _positions(state: Any, source: str) -> V2PESettings | None:
    """Return the positions a run was trained with; None for a state without settings, written by a user's program.

    Args:
        state: content of the run's state file.
        source: the file, for the error.

    Raises:
        CheckpointError: it does not say with which positions the run was trained.
    """
    run = Fields(state, source, CheckpointError)
    if run.get("settings", dict[str, Any]) == {}:
        return None
    fields = run.section("settings").section("v2pe")
    version = fields.text("rope_pos_id_version", among=VERSIONS)
    stride = fields.get("rope_pos_id_stride", int | float | str, None)
    try:
        settings = V2PESettings.stated(version, stride)
        settings.check_in_config()
    except ConfigError as error:
        raise CheckpointError(f"{fields.source}: {error}") from error
    return settings


def _trained_on(state: Any, source: str) -> dict[str, Any]:
    """Return how a run made conversations and tiles of its samples, as far as its state says; names as in `CARRIED`."""
    data = Fields(state, source, CheckpointError).get("settings", dict[str, Any], {}).get("data")
    if data is None:
        return {}
    fields = Fields(data, f"{source}: settings: data", CheckpointError)
    flags = ("dynamic_image_size", "dynamic_max_patch", "use_thumbnail", "pad2square")
    found: dict[str, Any] = {
        "template": fields.text("template", None),
        "normalize_type": fields.text("normalize_type", None, NORMALIZE_TYPES),
        **{name: fields.flag(name, None) for name in flags},
        **{name: fields.whole(name, None, 1, 1000) for name in ("min_dynamic_patch", "max_dynamic_patch")},
        **{name: fields.whole(name, None, 1, 100_000) for name in ("min_num_frame", "max_num_frame")},
    }
    return {name: value for name, value in found.items() if value is not None}


def _vision(state: Any, source: str) -> dict[str, Any]:
    """Return what a run has set in the vision tower: its stochastic depth, which the published script writes too."""
    model = Fields(state, source, CheckpointError).get("settings", dict[str, Any], {}).get("model")
    if model is None:
        return {}
    rate = Fields(model, f"{source}: settings: model", CheckpointError).number("drop_path_rate", None, 0, 0.99)
    return {} if rate is None else {"drop_path_rate": rate}
