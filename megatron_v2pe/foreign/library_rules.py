"""How text is cut for the `tokenizers` library: the rules of Llama's and Qwen2's class, and what other parts there are.

All are in the form of `tokenizer.json`. The rules are those of transformers (`models/llama/tokenization_llama.py`,
`models/qwen2/tokenization_qwen2.py`, release 5).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.tokenizer_settings import TokenizerSettings

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizers cut text before they look for pieces, as their documentation has it."""
LLAMA3_WORDS = WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""How Llama-3's do, which take up to three digits together."""
CUT_AT_BLANKS = (WORDS, LLAMA3_WORDS)
"""Patterns of which no match holds a blank behind a character that is no white space: Qwen2's and Llama-3's."""
_LONGEST_PATTERN = 1 << 12
PARTS = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "Strip", "ByteLevel"),
    "pre_tokenizer": ("ByteLevel", "Split", "Metaspace", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation"),
    "post_processor": ("ByteLevel", "TemplateProcessing"),
    "decoder": ("ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "BPEDecoder"),
}
"""Parts of a `tokenizer.json` that are read; each may also be null, or a `Sequence` of them."""
_LISTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
BLANK = "\u2581"
"""How pieces of SentencePiece spell a blank."""
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
QWEN: dict[str, Any] = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
            BYTE_LEVEL,
        ],
    },
    "decoder": BYTE_LEVEL,
}


def llama(vocabulary: dict[str, int], merges: Iterable[Any], settings: TokenizerSettings) -> dict[str, Any]:
    """Describe a tokenizer of Llama's class: no part of a text is cut, a blank comes before the first or every one."""
    scheme = ("always" if settings.legacy else "first") if settings.prefix_space else "never"
    model = bpe(vocabulary, merges) | {"fuse_unk": True, "byte_fallback": True}
    return {"version": "1.0", "model": model, **blanks_as_pieces(scheme)}


def blanks_as_pieces(scheme: str) -> dict[str, Any]:
    """Describe how SentencePiece spells blanks, and how pieces become text again.

    Args:
        scheme: whether a blank comes before a text: `always` (before each part between special tokens), `first` (before
            the first part alone) or `never`.
    """
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if scheme != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def merges_of(pieces: Collection[str]) -> list[tuple[str, str]]:
    """Return every pair of pieces that joins to a piece, in the order of the pieces that come out."""
    known = set(pieces)
    pairs: list[tuple[str, str]] = []
    for piece in pieces:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs += [pair for pair in cuts if pair[0] in known and pair[1] in known]
    return pairs


def bpe(vocabulary: dict[str, int], merges: Iterable[Any]) -> dict[str, Any]:
    """Describe a byte-pair encoding."""
    return {"type": "BPE", "vocab": vocabulary, "merges": list(merges)}


def check_part(name: str, part: Any, where: str, error: Kind) -> None:
    """Check one of `PARTS` of a `tokenizer.json`.

    Raises:
        V2PEError: of class `error`: it is of no known kind, or has a pattern that is too long; names what is known.
    """
    if part is None:
        return
    found = Fields(part, where, error).text("type")
    if found == "Sequence":
        for place, inner in enumerate(Fields(part, where, error).get(_LISTS[name], list)):
            check_part(name, inner, f"{where}[{place}]", error)
    elif found not in PARTS[name]:
        raise error(f"{where}: unknown: {printable(found)[:40]!r}; known are {', '.join(PARTS[name])}")
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and len(str(pattern)) > _LONGEST_PATTERN:
        raise error(f"{where}: a pattern of {len(str(pattern))} characters, at most {_LONGEST_PATTERN} are read")


def is_byte_level(content: Mapping[str, Any]) -> bool:
    """Tell whether a description cuts text into bytes that have a character each."""
    part = content.get("pre_tokenizer") or {}
    parts = part.get("pretokenizers") or [part]
    return any(isinstance(inner, dict) and inner.get("type") == "ByteLevel" for inner in parts)


def words(content: Mapping[str, Any]) -> str | None:
    """Return the pattern of a pre-tokenizer that is one `Split` and a `ByteLevel` that adds and cuts nothing."""
    parts = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    plain = len(parts) == 2 and parts[0].get("type") == "Split" and parts[1].get("type") == "ByteLevel"
    if not plain or (content.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        return None
    isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
    whole = not parts[1].get("add_prefix_space") and not parts[1].get("use_regex", True)
    return (parts[0].get("pattern") or {}).get("Regex") if isolated and whole else None
