"""The `config.json` of transformers' own InternVL class, translated to that of the published folders and back.

| | published by OpenGVLab ("original") | transformers ("native") |
|---|---|---|
| `model_type` | `internvl_chat` | `internvl` |
| language model | `llm_config` | `text_config`, of a class that transformers has: InternLM2 is `llama` there |
| tower | `vision_config`: `qkv_bias`, `qk_normalization`, `initializer_factor`, one number for a side | `vision_config`: `attention_bias`, `use_qk_norm`, `layer_scale_init_value`, `[448, 448]` |
| layer of the tower | `select_layer` | `vision_feature_layer` |
| tied embeddings | `llm_config.tie_word_embeddings` | `tie_word_embeddings` at the top |

The program works with the original form alone: a native file is translated when it is read (`models/config.py`) and
when it is written (`checkpoint/hf/`). What the native form has no place for stands in its field `v2pe_original`, which
transformers keeps and does not read, so that a file goes there and back without a loss.

A field that a native file leaves out means what transformers' class takes for it (`native_fields.py`).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_rope import PLACES
from megatron_v2pe.models.config_sections import LANGUAGE_MODELS, VISION_TOWERS, SectionReader
from megatron_v2pe.models.native_fields import (
    ORIGINAL_VISION_DEFAULTS,
    TEXT_DEFAULT_KIND,
    TEXT_DEFAULTS,
    TEXT_FIELDS,
    TOP_DEFAULTS,
    TOP_FIELDS,
    TOP_FIXED,
    VISION_DEFAULTS,
    VISION_FIXED,
    VISION_INITIAL,
    VISION_NAMES,
)
from megatron_v2pe.models.native_texts import NATIVE_TEXTS, native_kinds, native_text
from megatron_v2pe.v2pe.rope_scaling import SCALINGS

ORIGINAL, NATIVE = "original", "native"
LAYOUTS = (ORIGINAL, NATIVE)
"""The two layouts of a Hugging Face folder by name."""
NATIVE_KIND, NATIVE_CLASS = "internvl", "InternVLForConditionalGeneration"
ORIGINAL_KIND, ORIGINAL_CLASS = "internvl_chat", "InternVLChatModel"
RECORD = "v2pe_original"
"""Field of a native `config.json` with what only the original form has a place for."""
QK_NORM_EPS = 1e-6
"""Epsilon of transformers' norms of the tower's queries and keys, whatever `layer_norm_eps` says."""
_UNSCALED = frozenset(kind for kind, scaling in SCALINGS.items() if not scaling.with_v2pe)
"""Scalings that are not used under V2PE positions: the native form then states none."""


def layout_of_config(config: Mapping[str, Any]) -> str:
    """Return the layout of a `config.json` as its file states it: `native` if it is of transformers' own class."""
    return NATIVE if config.get("model_type") == NATIVE_KIND else ORIGINAL


def to_original(native: Mapping[str, Any], source: str = "config.json") -> dict[str, Any]:
    """Return the original form of a native `config.json`; what is in original form comes back as it is.

    Args:
        native: content of the file.
        source: the file, for errors.

    Raises:
        ConfigError: a language model that is not supported, or a field that asks for what is not computed; names it.
    """
    if layout_of_config(native) != NATIVE:
        return dict(native)
    top = Fields(native, source, ConfigError)
    names = top.get("architectures", list[str], None)
    if names and names[0] != NATIVE_CLASS:
        raise ConfigError(
            f"{source}: architectures: found {printable(names[0])[:80]!r} beside model_type {NATIVE_KIND}, expected "
            f"{NATIVE_CLASS}: other heads are not supported"
        )
    if "llm_config" in native:
        raise ConfigError(
            f"{source}: model_type {NATIVE_KIND!r} is transformers' own class, with text_config, but "
            f"llm_config stands there, which is the form of {ORIGINAL_KIND!r}: state the one that the file is of"
        )
    record = Fields(top.get(RECORD, dict, {}), f"{source}: {RECORD}", ConfigError)
    kept = {part: record.get(part, dict, {}) for part in ("config", "llm_config", "vision_config")}
    _same(top, TOP_FIXED)
    left = {"text_config", "vision_config", RECORD, "model_type", "architectures", "tie_word_embeddings",
            "vision_feature_layer", "image_seq_length", *TOP_FIXED}  # fmt: skip
    result = {**TOP_DEFAULTS, **kept["config"], **{name: native[name] for name in native if name not in left}}
    for name in ("template", "downsample_ratio"):
        result[name] = TOP_DEFAULTS[name] if result.get(name) in (None, "") else result[name]
    result["model_type"], result["architectures"], result["ps_version"] = ORIGINAL_KIND, [ORIGINAL_CLASS], "v2"
    result["select_layer"] = top.whole("vision_feature_layer", -1)
    result["llm_config"] = _original_text(top, kept["llm_config"])
    result["vision_config"] = _original_vision(top, kept["vision_config"])
    expected = _tokens_per_tile(result)
    if expected is not None:
        _same(top, {"image_seq_length": expected})
    return result


def to_native(config: Mapping[str, Any], image_token_id: int | None = None) -> dict[str, Any]:
    """Return the native form of an original `config.json` that `InternVLConfig.from_hf` has read without an error.

    Args:
        config: the original form.
        image_token_id: id of the token that stands for a piece of an image; None: the one that `config` states.

    Raises:
        ConfigError: the model computes what the native class does not; names the field and says what does.
    """
    if config.get("ps_version", "v1") != "v2":
        raise ConfigError(
            "ps_version: found v1, but transformers' InternVL computes v2 alone; such a model stays in the original "
            "layout"
        )
    llm, vision = dict(config["llm_config"]), dict(config["vision_config"])
    architecture = llm["architectures"][0]
    text = native_text(architecture)
    for name, value in text.only_original.items():
        if llm.get(name, value) != value:
            raise ConfigError(
                f"llm_config: {name} is {llm[name]!r}: transformers' {text.model_type} computes {value!r}; it "
                "stays in the original layout"
            )
    kept_llm = {name: value for name, value in llm.items() if name not in TEXT_FIELDS}
    own = {name: value for name, value in llm.items() if name in TEXT_FIELDS}
    if _positions_version(config) != "default" and (places := _scaled_places(own)):
        for name in places:
            kept_llm[name] = own.pop(name)
            if (base := kept_llm[name].get("rope_theta")) is not None:
                own.setdefault("rope_theta", base)
    for name in PLACES:
        if isinstance(own.get(name), Mapping) and "su" in (own[name].get("rope_type"), own[name].get("type")):
            kept_llm[name], scaling = own[name], dict(own[name])  # transformers 5 does not open the older name
            scaling.pop("type", None)
            own[name] = {**scaling, "rope_type": "longrope"}
    if own.get("sliding_window") is not None and not {"use_sliding_window"} & own.keys():
        kept_llm["sliding_window"] = own["sliding_window"]  # wider than the trained length, and taken for none here
        own["sliding_window"] = None
    tied = bool(llm.get("tie_word_embeddings", False))
    text_config = {"model_type": text.model_type, **own, "tie_word_embeddings": tied}
    vision_config, kept_vision = _native_vision(vision)
    kept_top = {name: value for name, value in config.items() if name not in TOP_FIELDS}
    for derived in ("llm_config", "vision_config", "select_layer", "ps_version", "model_type", "architectures"):
        kept_top.pop(derived, None)
    if native_kinds().get(text.model_type) == architecture:
        kept_llm.pop("architectures", None)
    kept_llm.pop("model_type", None)
    record = {"config": kept_top, "llm_config": kept_llm, "vision_config": kept_vision}
    record = {part: fields for part, fields in record.items() if fields}
    stated = {name: value for name, value in config.items() if name in TOP_FIELDS}
    token = stated.pop("image_token_id", None) if image_token_id is None else image_token_id
    if token is None:
        raise ConfigError(
            "image_token_id is not known: no tokenizer lies beside config.json, and it does not say; copy the "
            "tokenizer's files into the folder, or state image_token_id, the id of <IMG_CONTEXT>, in config.json"
        )
    return {
        "architectures": [NATIVE_CLASS],
        "model_type": NATIVE_KIND,
        **stated,
        "downsample_ratio": config.get("downsample_ratio", 0.5),
        "image_token_id": token,
        "image_seq_length": _tokens_per_tile(config),
        "vision_feature_layer": config.get("select_layer", -1),
        **TOP_FIXED,
        "tie_word_embeddings": tied,
        "text_config": text_config,
        "vision_config": vision_config,
        **({RECORD: record} if record else {}),
    }


def in_layout(config: Mapping[str, Any], layout: str, image_token_id: int | None = None) -> dict[str, Any]:
    """Return an original `config.json` in a layout; for arguments and errors see `to_native`."""
    return to_native(config, image_token_id) if layout == NATIVE else without_native_fields(config)


def without_native_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an original `config.json` without what a native one has left in it, for an original folder."""
    return {name: value for name, value in config.items() if name != "image_token_id"}


def _original_text(top: Fields, kept: dict[str, Any]) -> dict[str, Any]:
    """Return the `llm_config` of a native file; `kept` is what it has recorded of the one it was made from."""
    text = Fields(top.get("text_config", dict, None) or {}, f"{top.source}: text_config", ConfigError)
    kind: str = text.get("model_type", str, TEXT_DEFAULT_KIND)
    recorded = Fields(kept, f"{top.source}: {RECORD}: llm_config", ConfigError).get("architectures", list[str], None)
    architecture = native_kinds().get(kind)
    if recorded and recorded[0] in LANGUAGE_MODELS and native_text(recorded[0]).model_type == kind:
        architecture = recorded[0]
    reader = None if architecture is None else LANGUAGE_MODELS.find(architecture)
    if architecture is None or reader is None:
        raise ConfigError(
            f"{text.source}: model_type {printable(kind)[:80]!r} is not supported as the language model of a native "
            f"InternVL checkpoint; supported: {', '.join(native_kinds())}"
        )
    content = {name: value for name, value in text.content.items() if name not in ("model_type", "architectures")}
    if any(name in kept for name in PLACES):
        places = [content.pop(name, None) for name in PLACES]
        bases = [place.get("rope_theta") for place in places if isinstance(place, Mapping)]
        if stated := [base for base in bases if base is not None]:
            content.setdefault("rope_theta", stated[0])
    tied = top.flag("tie_word_embeddings", text.flag("tie_word_embeddings", False))
    only = NATIVE_TEXTS[architecture].only_original if architecture in NATIVE_TEXTS else {}
    return {
        **TEXT_DEFAULTS.get(kind, {}),
        **only,
        **content,
        **kept,
        "architectures": [architecture],
        "model_type": reader.model_types[0],
        "tie_word_embeddings": tied,
    }


def _original_vision(top: Fields, kept: dict[str, Any]) -> dict[str, Any]:
    """Return the original `vision_config` of a native file; `kept` is what it has recorded."""
    vision = Fields(top.get("vision_config", dict, None) or {}, f"{top.source}: vision_config", ConfigError)
    vision.text("model_type", "internvl_vision", ("internvl_vision",))
    _same(vision, VISION_FIXED)
    content: dict[str, Any] = {
        **VISION_DEFAULTS,
        **{name: value for name, value in vision.content.items() if value is not None},
    }
    for name in ("model_type", *VISION_FIXED):
        content.pop(name, None)
    for (
        name,
        original,
    ) in VISION_NAMES.items():  # published native files have both names of some, transformers reads one
        second = content.pop(original, None)
        if second is not None and second != content[name] and name not in VISION_INITIAL:
            raise ConfigError(
                f"{vision.source}: {name} is {printable(content[name])[:40]}, but {original}, its name in the original "
                f"layout, is {printable(second)[:40]}; make them agree, or remove {original}"
            )
    for name in ("image_size", "patch_size"):
        content[name] = _side(content[name], f"{vision.source}: {name}")
    if content["use_qk_norm"] is True and content["layer_norm_eps"] != QK_NORM_EPS:
        raise ConfigError(
            f"{vision.source}: layer_norm_eps: found {content['layer_norm_eps']}, expected {QK_NORM_EPS}: transformers "
            "normalises queries and keys with this number whatever is stated, here they share one"
        )
    renamed: dict[str, Any] = {VISION_NAMES.get(name, name): value for name, value in content.items()}
    default, reader = next((name, reader) for name, reader in _towers().items() if reader.is_default)
    return {"architectures": [default], "model_type": reader.model_types[0], **kept, **renamed}


def _native_vision(vision: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the native `vision_config`, and what has no place in it.

    Raises:
        ConfigError: it is of another tower, or normalises queries and keys with another number than transformers does.
    """
    names = vision.get("architectures") or [next(name for name, reader in _towers().items() if reader.is_default)]
    if not (_towers()[names[0]].is_default):
        raise ConfigError(f"vision tower {names[0]!r} has no native form; write the original layout")
    stated = {**ORIGINAL_VISION_DEFAULTS, **vision}
    result: dict[str, Any] = {"model_type": "internvl_vision"}
    for native, default in VISION_DEFAULTS.items():
        value = stated.pop(VISION_NAMES.get(native, native), None)
        result[native] = default if value is None else value
    for name in ("image_size", "patch_size"):
        result[name] = [result[name]] * 2
    if result["use_qk_norm"] and result["layer_norm_eps"] != QK_NORM_EPS:
        raise ConfigError(
            f"vision_config: layer_norm_eps is {result['layer_norm_eps']}: transformers' tower normalises queries and "
            f"keys with {QK_NORM_EPS} whatever is stated; write the original layout"
        )
    result.update(VISION_FIXED)
    result.update({name: stated.pop(name) for name in ("torch_dtype", "dtype") if name in stated})
    for derived in ("model_type", "architectures"):
        stated.pop(derived, None)
    return result, stated


def _positions_version(config: Mapping[str, Any]) -> str:
    """Return with which positions a model was trained."""
    return config.get("rope_pos_id_version") or config["llm_config"].get("rope_pos_id_version") or "default"


def _scaled_places(llm: Mapping[str, Any]) -> list[str]:
    """Return the fields of an `llm_config` that state a scaling which is not used under V2PE positions."""
    found = [name for name in PLACES if isinstance(llm.get(name), Mapping)]
    kinds = {llm[name].get("rope_type", llm[name].get("type")) for name in found}
    return found if kinds & _UNSCALED else []


def _tokens_per_tile(config: Mapping[str, Any]) -> int | None:
    """Return the tokens of a tile, None where the fields are no numbers, which their reader says."""
    side, patch = config.get("force_image_size"), config["vision_config"].get("patch_size")
    side = config["vision_config"].get("image_size") if side is None else side
    ratio = config.get("downsample_ratio", 0.5)
    numbers = (side, patch, ratio)
    if not all(isinstance(value, (int, float)) and 0 < value < 1 << 30 for value in numbers):
        return None
    return int((side // patch) ** 2 * ratio**2)


def _side(value: Any, where: str) -> Any:
    """Return the side of a square that is stated as one number or as two."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != 2 or value[0] != value[1]:
        raise ConfigError(f"{where}: found {printable(value)[:40]}, expected a square such as [448, 448]")
    return value[0]


def _same(section: Fields, computed: Mapping[str, Any]) -> None:
    """Check that fields, where they are stated, say what is computed."""
    for name, value in computed.items():
        found = section.content.get(name)
        if found is not None and (found != value or isinstance(found, bool) != isinstance(value, bool)):
            raise ConfigError(
                f"{section.source}: {name}: found {printable(found)[:40]!r}, but what is computed is {value!r}; such a "
                "model is not supported"
            )


def _towers() -> dict[str, SectionReader[Any]]:
    return {name: reader for name in VISION_TOWERS if (reader := VISION_TOWERS.find(name)) is not None}
