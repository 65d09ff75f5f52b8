"""How the language model of a family is called by transformers, where that is not as in the published folders.

`native_config.py` translates a whole `config.json` with it; how tensors are called stands in
`checkpoint/hf/native_table.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config_sections import LANGUAGE_MODELS, LanguageConfig, SectionReader
from megatron_v2pe.models.native_fields import TEXT_DEFAULTS


@dataclass(frozen=True)
class NativeText:
    """How the language model of a family is called in transformers, where that is not the family's own `model_type`."""

    model_type: str
    """`text_config.model_type`."""
    only_original: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `llm_config` that the native class has not, with the value that it computes."""
    reads: tuple[str, ...] = ()
    """Further values of `text_config.model_type` that mean this family."""


NATIVE_TEXTS: Registry[NativeText] = Registry("native form of a language model", FAMILIES, "config")
"""Native forms by what `llm_config.architectures` states; a family without one is called the same on both sides."""


def native_kinds() -> dict[str, str]:
    """Return every `text_config.model_type` that can be read with the architecture it is taken for.

    A kind that several families can be saved as (`llama`) is taken for the one that has it as its own name.
    """
    own: dict[str, str] = {}
    for name, reader in _readers().items():
        text = NATIVE_TEXTS.find(name)
        own.update(dict.fromkeys(reader.model_types if text is None else text.reads, name))
    return own


def native_text(architecture: str) -> NativeText:
    """Return how the language model of an architecture is called in transformers.

    Raises:
        ConfigError: transformers has no class for it.
    """
    if (text := NATIVE_TEXTS.find(architecture)) is not None:
        return text
    reader = LANGUAGE_MODELS.find(architecture)
    kinds = () if reader is None else reader.model_types
    if not kinds or kinds[0] not in TEXT_DEFAULTS:
        raise ConfigError(
            f"language model {architecture!r} has no native form: its family says no class of transformers for it; "
            f"known: {', '.join(TEXT_DEFAULTS)}. Write the original layout"
        )
    return NativeText(kinds[0])


def with_language_model(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return an original `config.json` whose language model is stated as another family of the same computation.

    Args:
        config: the original form.
        kind: `model_type` of the family, such as `internlm2` for a model that a native folder states as `llama`.

    Raises:
        ConfigError: no such family, or one that transformers keeps under another name than this model's.
    """
    of_kind = {name: reader for name, reader in _readers().items() if kind in reader.model_types}
    if not of_kind:
        known = ", ".join(name for reader in _readers().values() for name in reader.model_types)
        raise ConfigError(f"language model {printable(kind)[:80]!r} is not known; known: {known}")
    architecture = next(iter(of_kind))
    present = config["llm_config"]["architectures"][0]
    now, wanted = native_text(present), native_text(architecture)
    if now.model_type != wanted.model_type:
        raise ConfigError(
            f"language model {kind} is {wanted.model_type} in transformers, the checkpoint's {present} is "
            f"{now.model_type}: they compute different things"
        )
    only_now = {*now.only_original} - {*wanted.only_original}
    llm = {name: value for name, value in config["llm_config"].items() if name not in only_now}
    llm.update({**wanted.only_original, "architectures": [architecture], "model_type": kind})
    llm.pop("auto_map", None)
    return {**config, "llm_config": llm}


def _readers() -> dict[str, SectionReader[LanguageConfig]]:
    return {name: reader for name in LANGUAGE_MODELS if (reader := LANGUAGE_MODELS.find(name)) is not None}
