"""What the files of a tokenizer say of its kind: which files count, which tokens begin and end a text.

A checkpoint may bring `tokenizer.model` (SentencePiece), `tokenizer.json` (the form of the `tokenizers` library),
`vocab.json` with `merges.txt` (byte-level BPE), or several of them. `tokenizer_class` of `tokenizer_config.json`
decides as transformers does: InternLM2's and InternLM3's classes read `tokenizer.model`; Llama's and Qwen2's take
vocabulary and merges from `tokenizer.json` where there is one, else from their own files, and know themselves how text
is cut; any other class takes `tokenizer.json` as it is. Where no class is named, `tokenizer.model` comes first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import kind_of, read_json_object

MODEL, CONFIG, ADDED = "tokenizer.model", "tokenizer_config.json", "added_tokens.json"
TOKENS_MAP = "special_tokens_map.json"
WHOLE = "tokenizer.json"
"""The form of the fast tokenizers: where the other two files are not written any more, it alone has the tokens."""
VOCABULARY, MERGES = "vocab.json", "merges.txt"
"""The two files of a byte-level BPE, as Qwen's checkpoints have them."""
LARGEST_FILE = 1 << 26
"""Bytes of one of these files, at most: 64 MiB; the largest published one has 17."""
IMG_START, IMG_END, IMG_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
"""Names of the tokens before, behind and of an image in every published checkpoint; their ids are read."""
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
INTERN = ("InternLM2Tokenizer", "InternLM3Tokenizer", "InternLMTokenizer")
"""Classes that give each part of a text to SentencePiece as it is."""
LLAMA, QWEN = "LlamaTokenizer", "Qwen2Tokenizer"
_DEFAULTS: dict[str, dict[str, str]] = {
    **dict.fromkeys((*INTERN, LLAMA, ""), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    QWEN: {"eos_token": "<|endoftext|>"},
}
"""Tokens of the classes where a configuration does not name them; the empty name stands for none."""


class TokenizerSource(Enum):
    """Which files a tokenizer is made of, and by whose rules."""

    SENTENCE_PIECES = "tokenizer.model, each part as it is"
    LLAMA_MODEL = "tokenizer.model by Llama's rules"
    LLAMA_WHOLE = "vocabulary of tokenizer.json by Llama's rules"
    QWEN_FILES = "vocab.json and merges.txt by Qwen2's rules"
    QWEN_WHOLE = "vocabulary of tokenizer.json by Qwen2's rules"
    WHOLE = "tokenizer.json by its own rules"

    @property
    def file(self) -> str:
        """Name of the file that holds the vocabulary."""
        if self in (TokenizerSource.SENTENCE_PIECES, TokenizerSource.LLAMA_MODEL):
            return MODEL
        return VOCABULARY if self is TokenizerSource.QWEN_FILES else WHOLE


@dataclass(frozen=True)
class TokenizerSettings:
    """What `tokenizer_config.json` and `special_tokens_map.json` state."""

    source: str
    """The file, for errors."""
    name: str
    """`tokenizer_class` without `Fast`; empty where none is named."""
    bos: str | None
    eos: str | None
    adds_bos: bool | None
    """Whether a text begins with `bos`; None where the files leave it to the class."""
    legacy: bool
    """Whether Llama's class puts a blank before every part of a text, not before the first alone."""
    prefix_space: bool
    """Whether Llama's class puts such a blank at all."""

    @classmethod
    def read(cls, folder: Path, error: Kind) -> TokenizerSettings:
        """Read the settings of a folder; what no file states is as the class has it.

        Raises:
            V2PEError: of class `error`: a file that is no JSON object, or a field of another type.
        """
        config = Fields(json_object(folder / CONFIG, error), printable(folder / CONFIG), error)
        name = config.text("tokenizer_class", "").removesuffix("Fast")
        roles = _roles(folder, config, error)
        default = _DEFAULTS.get(name, {})
        return cls(
            source=config.source,
            name=name,
            bos=roles["bos_token"] if "bos_token" in roles else default.get("bos_token"),
            eos=roles["eos_token"] if "eos_token" in roles else default.get("eos_token"),
            adds_bos=config.flag("add_bos_token", None),
            legacy=config.flag("legacy", False),
            prefix_space=config.flag("add_prefix_space", True),
        )


def role_tokens(folder: Path, error: Kind) -> frozenset[str]:
    """Return the tokens to which a folder gives a role, or which it lists as special.

    Raises:
        V2PEError: of class `error`: see `TokenizerSettings.read`.
    """
    config = Fields(json_object(folder / CONFIG, error), printable(folder / CONFIG), error)
    found = {name for name in _roles(folder, config, error).values() if name is not None}
    for source in (config, Fields(json_object(folder / TOKENS_MAP, error), printable(folder / TOKENS_MAP), error)):
        for name in _LISTS:
            entries = source.content.get(name)
            listed = entries if isinstance(entries, list) else []
            found |= {text for entry in listed if (text := _text_of(entry, f"{source.source}: {name}", error))}
    return frozenset(found)


def source_of(folder: Path, name: str, error: Kind) -> TokenizerSource | None:
    """Return of which files a folder's tokenizer is made; None where none of them is there.

    Args:
        folder: the checkpoint's.
        name: `tokenizer_class` without `Fast`.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: `vocab.json` without `merges.txt` or the other way round.
    """
    has = {file for file in (MODEL, WHOLE, VOCABULARY, MERGES) if os.path.lexists(folder / file)}
    if MODEL in has and (name in (*INTERN, "") or WHOLE not in has and name not in (LLAMA, QWEN)):
        return TokenizerSource.SENTENCE_PIECES
    if WHOLE in has:
        if name == QWEN:
            return TokenizerSource.QWEN_WHOLE
        return TokenizerSource.LLAMA_WHOLE if name == LLAMA else TokenizerSource.WHOLE
    if MODEL in has:
        return TokenizerSource.LLAMA_MODEL if name == LLAMA else TokenizerSource.SENTENCE_PIECES
    if has & {VOCABULARY, MERGES}:
        for absent in {VOCABULARY, MERGES} - has:
            present = MERGES if absent == VOCABULARY else VOCABULARY
            raise error(f"{printable(folder / absent)}: missing; {present} beside it belongs to a tokenizer")
        return TokenizerSource.QWEN_FILES
    return None


def json_object(path: Path, error: Kind) -> dict[str, Any]:
    """Return the object of a JSON file, whose names are unique; an empty one where there is no such file."""
    return read_json_object(path, error, LARGEST_FILE, unique=True) if os.path.lexists(path) else {}


def _roles(folder: Path, config: Fields, error: Kind) -> dict[str, str | None]:
    """Return the tokens with a role, by role; None where a file says that there is none."""
    others = Fields(json_object(folder / TOKENS_MAP, error), printable(folder / TOKENS_MAP), error)
    roles: dict[str, str | None] = {}
    for source in (others, config):
        for role in ROLES:
            if role in source.content:
                roles[role] = _text_of(source.content[role], f"{source.source}: {role}", error)
    return roles


def _text_of(entry: Any, where: str, error: Kind) -> str | None:
    """Return a token that is written as text, or as an object with its text under `content`."""
    if entry is None or isinstance(entry, str):
        return entry
    if isinstance(entry, dict):
        return Fields(entry, where, error).text("content")
    raise error(f"{where}: found {kind_of(entry)}, expected a token")
