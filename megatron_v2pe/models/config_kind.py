"""What kind of checkpoint a `config.json` describes: one that is not supported is named before anything else is read.

Folders of other models are given to the tools by mistake or in hope. Their tokenizers, weights and fields are other
ones too; the only message that helps is which model it is and which ones are supported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_sections import (
    LANGUAGE_MODELS,
    VISION_TOWERS,
    LanguageConfig,
    SectionReader,
    VisionConfig,
)
from megatron_v2pe.models.native_config import NATIVE_CLASS, NATIVE_KIND, ORIGINAL_CLASS, ORIGINAL_KIND
from megatron_v2pe.models.native_texts import native_kinds

_KIND, _CLASS = ORIGINAL_KIND, ORIGINAL_CLASS
_POSITIONS = ("rope_pos_id_version", "rope_pos_id_stride")
"""Fields that training writes into `llm_config`, which no family reads: they are those of `v2pe.settings`."""


@dataclass(frozen=True)
class ConfigPart:
    """A section of a `config.json` with the family that reads it."""

    section: Fields
    architecture: str
    reader: SectionReader[Any]

    @property
    def missing(self) -> list[str]:
        """The fields that have to be there and are not."""
        return [name for name in self.reader.needed if self.section.content.get(name) is None]


@dataclass(frozen=True)
class Kind:
    """The families of a model's parts."""

    vision: ConfigPart
    language: ConfigPart

    def read_vision(self) -> VisionConfig:
        """Read `vision_config`; errors are those of the family's reader."""
        return self.vision.reader.read(self.vision.section)

    def read_language(self) -> LanguageConfig:
        """Read `llm_config`; errors are those of the family's reader and of `LanguageConfig.check`."""
        section = self.language.section
        content = {name: value for name, value in section.content.items() if name not in _POSITIONS}
        config: LanguageConfig = self.language.reader.read(Fields(content, section.source, section.error))
        config.check(section)
        return config


def kind_of_model(top: Fields, native: bool = False) -> Kind:
    """Return the families of an InternVL model's parts.

    Args:
        top: the content of `config.json`, in its original form.
        native: whether the file has the native form, in which the language model's section is called `text_config`.

    Raises:
        V2PEError: of the content's class: it is another model's, which is named with those that are supported, or does
            not say which; then the missing field is named with what it would be.
    """
    kind, architecture = top.text("model_type", None), _architecture(top)
    if kind is None and architecture is None:
        known = ", ".join(printable(name)[:40] for name in list(top.content)[:5]) or "nothing"
        raise top.error(
            f"{top.source}: fields 'model_type' and 'architectures' are missing: it does not say which model it is of "
            f"(it holds {known}); {supported()}"
        )
    if kind is None and architecture == _CLASS:
        _missing(top, "model_type", f'"{_KIND}"', f"; architectures is {_CLASS}")
    if kind != _KIND or architecture not in (None, _CLASS):
        _refuse(top, kind, architecture)
    if "llm_config" not in top.content and "text_config" in top.content:
        raise top.error(
            f"{top.source}: section 'llm_config' is missing; text_config is not read in its place, rename it"
        )
    llm = top.section("llm_config")
    if native:
        llm = Fields(llm.content, f"{top.source}: text_config", llm.error)
    language = _part(llm, "language model", LANGUAGE_MODELS)
    vision = _part(top.section("vision_config"), "vision tower", VISION_TOWERS)
    if (other := top.content.get("text_config")) and other != top.content.get("llm_config"):
        raise top.error(f"{top.source}: llm_config and text_config differ; one of them is of another model: remove it")
    return Kind(vision, language)


def supported() -> str:
    """Return which models are supported, in words."""
    readers = {name: reader for name in LANGUAGE_MODELS if (reader := LANGUAGE_MODELS.find(name)) is not None}
    titles = ", ".join(f"{reader.title} ({name})" for name, reader in readers.items())
    examples = [reader.example for reader in readers.values() if reader.example is not None]
    such = f", such as {examples[0]}" if examples else ""
    return (
        f"supported is {_CLASS} (model_type {_KIND}) with one of {titles}{such}, and {NATIVE_CLASS} (model_type "
        f"{NATIVE_KIND}) with a text_config of {', '.join(native_kinds())}"
    )


def _part(section: Fields, what: str, families: Registry[SectionReader[Any]]) -> ConfigPart:
    """Return which family reads a section.

    A tower need not be named, for the published class knows but one; a language model needs its `architectures`.
    """
    architecture, kind = _architecture(section), section.text("model_type", None)
    readers = {name: reader for name in families if (reader := families.find(name)) is not None}
    of_kind = {name: reader for name, reader in readers.items() if kind is None or kind in reader.model_types}
    if architecture is None:
        default = [(name, reader) for name, reader in of_kind.items() if reader.is_default]
        if default:
            return ConfigPart(section, *default[0])
        if of_kind:
            expected = " or ".join(f'["{name}"]' for name in of_kind)
            _missing(section, "architectures", expected, "" if kind is None else f"; model_type is {kind}")
    elif architecture not in readers:
        shown = printable(architecture)[:80]
        raise section.error(f"{section.source}: {what} {shown!r} is not supported; {supported()}")
    if architecture not in of_kind:
        shown = printable(kind)[:80]
        if architecture is not None and of_kind:
            fits = " or ".join(sorted(readers[architecture].model_types))
            raise section.error(
                f"{section.source}: architectures is {architecture}, but model_type {shown!r} is that of "
                f"{' or '.join(of_kind)}: one of the two is another model's; {architecture} has the model_type {fits}"
            )
        raise section.error(f"{section.source}: {what} of model_type {shown!r} is not supported; {supported()}")
    return ConfigPart(section, architecture, of_kind[architecture])


def _refuse(top: Fields, kind: str | None, architecture: str | None) -> NoReturn:
    shown = printable(architecture if architecture is not None else kind)[:80]
    of_kind = f" (model_type {printable(kind)[:80]!r})" if kind is not None and architecture is not None else ""
    raise top.error(f"{top.source}: architecture {shown!r}{of_kind} is not {_CLASS} ({_KIND}); {supported()}")


def _missing(section: Fields, name: str, expected: str, known: str) -> NoReturn:
    raise section.error(
        f"{section.source}: field {name!r} is missing{known}; add it as {name}: {expected}, or copy config.json again"
    )


def _architecture(section: Fields) -> str | None:
    names = section.get("architectures", list[str], None)
    return names[0] if names else None
