"""What kind of checkpoint a `config.json` describes: one that is not supported is named before anything else is read.

Folders of other models are given to the tools by mistake or in hope. Their tokenizers, weights and fields are other
ones too; the only message that helps is which model it is and which ones are supported.
"""

from __future__ import annotations

from typing import NoReturn

from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields

SUPPORTED = (
    "supported is InternVL2 with an InternLM2 language model (model_type internvl_chat, architectures "
    "InternVLChatModel and InternLM2ForCausalLM), such as OpenGVLab/InternVL2-2B"
)
LANGUAGE_MODEL = "InternLM2ForCausalLM"
_KIND, _CLASS = "internvl_chat", "InternVLChatModel"


def check_kind(top: Fields) -> None:
    """Check that a `config.json` is that of an InternVL2 model with InternLM2.

    Args:
        top: its content.

    Raises:
        V2PEError: of the content's class: it is another model's, which is named with those that are supported, or does
            not say which; then the missing field is named with what it would be.
    """
    kind, architecture = top.text("model_type", None), _architecture(top)
    if kind is None and architecture is None:
        known = ", ".join(printable(name)[:40] for name in list(top.content)[:5]) or "nothing"
        raise top.error(
            f"{top.source}: fields 'model_type' and 'architectures' are missing: it does not say which model it is of "
            f"(it holds {known}); {SUPPORTED}"
        )
    if kind is None and architecture == _CLASS:
        _missing(top, "model_type", f'"{_KIND}"', f"; architectures is {_CLASS}")
    if kind != _KIND or architecture not in (None, _CLASS):
        _refuse(top, kind, architecture)
    if "llm_config" not in top.content and "text_config" in top.content:
        raise top.error(
            f"{top.source}: section 'llm_config' is missing; text_config is not read in its place, rename it"
        )
    _check_part(top.section("llm_config"), "language model", LANGUAGE_MODEL, ("internlm2",))
    _check_part(top.section("vision_config"), "vision tower", "InternVisionModel", ("intern_vit_6b",))
    if (other := top.content.get("text_config")) and other != top.content.get("llm_config"):
        raise top.error(f"{top.source}: llm_config and text_config differ; one of them is of another model: remove it")


def _check_part(section: Fields, what: str, expected: str, kinds: tuple[str, ...]) -> None:
    architecture, kind = _architecture(section), section.text("model_type", None)
    if architecture is None and kind is None and what == "vision tower":
        return  # the published class knows but one
    if architecture is None and kind in kinds and what == "vision tower":
        return
    if architecture is None and kind in (None, *kinds):
        _missing(section, "architectures", f'["{expected}"]', "" if kind is None else f"; model_type is {kind}")
    if architecture not in (None, expected):
        raise section.error(f"{section.source}: {what} {printable(architecture)[:80]!r} is not supported; {SUPPORTED}")
    if kind is not None and kind not in kinds:
        shown = printable(kind)[:80]
        raise section.error(f"{section.source}: {what} of model_type {shown!r} is not supported; {SUPPORTED}")


def _refuse(top: Fields, kind: str | None, architecture: str | None) -> NoReturn:
    shown = printable(architecture if architecture is not None else kind)[:80]
    of_kind = f" (model_type {printable(kind)[:80]!r})" if kind is not None and architecture is not None else ""
    hint = ""
    if kind == "internvl":
        hint = "; this is the form of transformers' own InternVL class: take the folder without -hf in its name"
    raise top.error(f"{top.source}: architecture {shown!r}{of_kind} is not {_CLASS} ({_KIND}); {SUPPORTED}{hint}")


def _missing(section: Fields, name: str, expected: str, known: str) -> NoReturn:
    raise section.error(
        f"{section.source}: field {name!r} is missing{known}; add it as {name}: {expected}, or copy config.json again"
    )


def _architecture(section: Fields) -> str | None:
    names = section.get("architectures", list[str], None)
    return names[0] if names else None
