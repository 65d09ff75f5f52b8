"""The files of a tokenizer for the `tokenizers` library: read, checked, and opened by it.

Whatever the files are, they become one description in the form of `tokenizer.json`, whose parts are looked at here
before the library sees them: it takes ids that come twice without a word, gives added tokens other ids than a file
states, and ends in a panic at some damage. The rules of Llama's and of Qwen2's class are those of transformers
(`models/llama/tokenization_llama.py`, `models/qwen2/tokenization_qwen2.py`, release 5).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import kind_of, lines
from megatron_v2pe.foreign.tokenizer_files import (
    LARGEST_ID,
    AddedToken,
    added_tokens,
    collected,
    load_pieces,
    tokens_in,
)
from megatron_v2pe.foreign.tokenizer_settings import (
    LLAMA,
    MERGES,
    MODEL,
    VOCABULARY,
    WHOLE,
    TokenizerSettings,
    TokenizerSource,
    json_object,
)

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizers cut text before they look for pieces, as their documentation has it."""
CUT_AT_BLANKS = (
    WORDS,
    WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
)
"""Patterns of which no match holds a blank behind a character that is no white space: Qwen2's and Llama-3's."""
_LONGEST_LINE, _LONGEST_PATTERN = 1 << 12, 1 << 12
_PARTS = {
    "normalizer": (
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Prepend",
        "Replace",
        "Lowercase",
        "Strip",
        "ByteLevel",
        "Precompiled",
    ),
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


@dataclass(frozen=True)
class LibraryFiles:
    """A tokenizer of the `tokenizers` library, and what is to be known of it."""

    library: tokenizers.Tokenizer
    pieces: int
    """Ids without those of tokens of their own: one more than the largest of the vocabulary."""
    added: Mapping[str, AddedToken]
    """Tokens of their own, by name."""
    before: tuple[int, ...]
    """Ids that stand before every text: that of `<s>`, or none."""
    bos: int | None
    eos: int | None
    words: str | None
    """The pattern by which text is cut where that is all that is done to it (but for NFC); None of other ways."""
    byte_level: bool
    """Whether a piece has a character for each byte."""
    digest: str
    """SHA-256 of all on which ids depend."""


def open_library(folder: Path, source: TokenizerSource, settings: TokenizerSettings, error: Kind) -> LibraryFiles:
    """Open the tokenizer of a folder by the library.

    Args:
        folder: with the files.
        source: which of them count; any but `SENTENCE_PIECES`.
        settings: of the folder.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: a file is missing, damaged or of another kind; a merge names a token that is none;
            an id comes twice; an added token has another id than the library would give it. Names the file, the line
            or the entry.
    """
    stated = added_tokens(folder, error)
    if source is TokenizerSource.QWEN_FILES:
        content, where = _qwen_files(folder, error), folder / VOCABULARY
    elif source is TokenizerSource.LLAMA_MODEL:
        content, where = _llama_model(folder, settings, error), folder / MODEL
    else:
        content, where = _whole(folder / WHOLE, source, settings, error), folder / WHOLE
    shown = printable(where)
    own = collected(tokens_in(content, shown, error), error) if "added_tokens" in content else {}
    for name, token in own.items():
        if (other := stated.get(name, token)).id != token.id:
            raise error(
                f"{shown}: token {printable(name)[:80]!r}: found id {token.id}, but {folder} gives it {other.id}"
            )
    added = collected(((token, shown) for token in (own | stated).values()), error)
    content["added_tokens"] = [asdict(token) for token in sorted(added.values(), key=lambda token: token.id)]
    library = _opened(content, shown, error)
    _check_ids(library, added, shown, error)
    bos, eos = (_id_of(library, name) for name in (settings.bos, settings.eos))
    before = _before(content, library, settings, bos)
    return LibraryFiles(
        library=library,
        pieces=1 + max(content["model"]["vocab"].values()),
        added=added,
        before=before,
        bos=bos,
        eos=eos,
        words=_words(content),
        byte_level=_is_byte_level(content),
        digest=_digest(content, before),
    )


def _qwen_files(folder: Path, error: Kind) -> dict[str, Any]:
    path = folder / VOCABULARY
    content = json_object(path, error)
    if not content:
        raise error(f"{printable(path)}: holds no token")
    merges, where = list[tuple[str, str]](), list[str]()
    source = printable(folder / MERGES)
    for number, line in lines(folder / MERGES, error, _LONGEST_LINE):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as problem:
            raise error(f"{source}:{number}: not UTF-8: byte {problem.start}") from problem
        if not text or number == 1 and text.startswith("#version"):
            continue
        if len(parts := text.split(" ")) != 2 or not all(parts):
            raise error(f"{source}:{number}: found {printable(text)[:80]!r}, expected two tokens and a blank between")
        merges.append((parts[0], parts[1]))
        where.append(f"{source}:{number}")
    if not merges:
        raise error(f"{source}: holds no merge")
    _check_vocabulary(content, printable(path), error)
    _check_merges(content, merges, where, error)
    return {"version": "1.0", "model": _bpe(content, merges), **QWEN}


def _llama_model(folder: Path, settings: TokenizerSettings, error: Kind) -> dict[str, Any]:
    """Describe a SentencePiece BPE for the library: each way to cut a piece into two is a merge, in the pieces' order.

    Pieces that stand for no text (`<s>`) and those that are never cut (user-defined) are tokens of their own.
    """
    pieces = load_pieces(folder / MODEL, error)
    numbers = range(pieces.get_piece_size())
    vocabulary = {pieces.id_to_piece(number): number for number in numbers}
    merges: list[tuple[str, str]] = []
    for piece in vocabulary:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += sorted((pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary), key=_lengths)
    own = [number for number in numbers if pieces.is_control(number) or pieces.is_unknown(number)]
    tokens = [asdict(AddedToken(pieces.id_to_piece(number), number)) for number in own]
    return _llama(vocabulary, merges, settings) | {"added_tokens": tokens + _user_defined(folder, pieces)}


def _lengths(pair: tuple[str, str]) -> tuple[int, int]:
    return len(pair[0]), len(pair[1])


def _user_defined(folder: Path, pieces: Any) -> list[dict[str, Any]]:
    from sentencepiece import sentencepiece_model_pb2 as messages

    model: Any = messages.ModelProto()  # type: ignore[attr-defined]  # made when imported, unseen by type checkers
    model.ParseFromString(pieces.serialized_model_proto())
    user = model.SentencePiece.USER_DEFINED
    return [
        asdict(AddedToken(piece.piece, number, special=False))
        for number, piece in enumerate(model.pieces)
        if piece.type == user
    ]


def _llama(vocabulary: dict[str, int], merges: Iterable[Any], settings: TokenizerSettings) -> dict[str, Any]:
    scheme = ("always" if settings.legacy else "first") if settings.prefix_space else "never"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if settings.prefix_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "model": _bpe(vocabulary, merges) | {"fuse_unk": True, "byte_fallback": True},
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _bpe(vocabulary: dict[str, int], merges: Iterable[Any]) -> dict[str, Any]:
    return {"type": "BPE", "vocab": vocabulary, "merges": list(merges)}


def _whole(path: Path, source: TokenizerSource, settings: TokenizerSettings, error: Kind) -> dict[str, Any]:
    """Read `tokenizer.json`; its own parts make way for the rules of a class that has some."""
    shown = printable(path)
    content = json_object(path, error)
    fields = Fields(content, shown, error)
    model = fields.section("model")
    found = model.text("type", "BPE" if "merges" in model.content else "of no stated kind")
    if found != "BPE":
        raise error(f"{shown}: a tokenizer of kind {printable(found)[:40]}; those of kind BPE are read")
    if model.get("dropout", float | int, 0):
        raise error(f"{shown}: model: dropout: it would leave out merges at random; set it to null")
    vocabulary = model.get("vocab", dict)
    _check_vocabulary(vocabulary, f"{shown}: model: vocab", error)
    merges = _pairs(model.get("merges", list), shown, error)
    _check_merges(vocabulary, merges, [f"{shown}: model: merges[{place}]" for place in range(len(merges))], error)
    for name in _PARTS:
        _check_part(name, content.get(name), f"{shown}: {name}", error)
    kept = {name: content.get(name) for name in ("added_tokens", "post_processor") if name in content}
    if source is TokenizerSource.QWEN_WHOLE:
        return {"version": "1.0", "model": _bpe(vocabulary, merges), **QWEN, **kept}
    if source is TokenizerSource.LLAMA_WHOLE and not _is_byte_level(content):
        return {**_llama(vocabulary, merges, settings), **kept}
    plain = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")}
    return {"version": "1.0", "model": {**model.content, "type": "BPE", "merges": merges}, **plain, **kept}


def _pairs(merges: list[Any], shown: str, error: Kind) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for place, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise error(f"{shown}: model: merges[{place}]: found {kind_of(merge)}, expected two tokens")
        pairs.append((parts[0], parts[1]))
    return pairs


def _check_vocabulary(vocabulary: dict[str, Any], where: str, error: Kind) -> None:
    names: dict[int, str] = {}
    for name, number in vocabulary.items():
        if type(number) is not int or not 0 <= number <= LARGEST_ID:
            raise error(f"{where}: {printable(name)[:80]!r}: found {printable(number)[:40]}, expected an id")
        if (other := names.setdefault(number, name)) != name:
            raise error(f"{where}: id {number} is given to {printable(other)[:80]!r} and to {printable(name)[:80]!r}")


def _check_merges(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], where: list[str], error: Kind) -> None:
    for (left, right), place in zip(merges, where, strict=True):
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
            unknown = next(token for token in (left, right, left + right) if token not in vocabulary)
            raise error(
                f"{place}: merges {printable(left)[:40]!r} and {printable(right)[:40]!r}, but "
                f"{printable(unknown)[:80]!r} is no token of the vocabulary"
            )


def _check_part(name: str, part: Any, where: str, error: Kind) -> None:
    if part is None:
        return
    found = Fields(part, where, error).text("type")
    if found == "Sequence":
        for place, inner in enumerate(Fields(part, where, error).get(_LISTS[name], list)):
            _check_part(name, inner, f"{where}[{place}]", error)
    elif found not in _PARTS[name]:
        raise error(f"{where}: unknown: {printable(found)[:40]!r}; known are {', '.join(_PARTS[name])}")
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and len(str(pattern)) > _LONGEST_PATTERN:
        raise error(f"{where}: a pattern of {len(str(pattern))} characters, at most {_LONGEST_PATTERN} are read")


def _is_byte_level(content: Mapping[str, Any]) -> bool:
    part = content.get("pre_tokenizer") or {}
    parts = part.get("pretokenizers") or [part]
    return any(isinstance(inner, dict) and inner.get("type") == "ByteLevel" for inner in parts)


def _opened(content: dict[str, Any], shown: str, error: Kind) -> tokenizers.Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(content))
    except BaseException as problem:  # third-party: a plain Exception, or a panic, which is none
        if isinstance(problem, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise error(f"{shown}: the library tokenizers cannot open it: {printable(problem)[:200]}") from problem
    library.no_truncation()
    library.no_padding()
    return library


def _check_ids(library: tokenizers.Tokenizer, added: Mapping[str, AddedToken], shown: str, error: Kind) -> None:
    for name, token in added.items():
        if (given := library.token_to_id(name)) != token.id:
            raise error(
                f"{shown}: token {printable(name)[:80]!r} is stated to have id {token.id}, but in this vocabulary it "
                f"has {given}; the vocabulary belongs to another model, or ids before it are left out"
            )


def _id_of(library: tokenizers.Tokenizer, name: str | None) -> int | None:
    return None if name is None else library.token_to_id(name)


def _before(
    content: Mapping[str, Any], library: tokenizers.Tokenizer, settings: TokenizerSettings, bos: int | None
) -> tuple[int, ...]:
    """Return the ids before every text: as `add_bos_token` says, else as the file's post-processor, else the class."""
    if settings.adds_bos is None and content.get("post_processor") is not None:
        library_ids: list[int] = library.encode("", add_special_tokens=True).ids
        return tuple(library_ids)
    adds = settings.name == LLAMA if settings.adds_bos is None else settings.adds_bos
    return (bos,) if adds and bos is not None else ()


def _words(content: Mapping[str, Any]) -> str | None:
    """Return the pattern of a pre-tokenizer that is one `Split` and a `ByteLevel` that adds and cuts nothing."""
    parts = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    plain = len(parts) == 2 and parts[0].get("type") == "Split" and parts[1].get("type") == "ByteLevel"
    if not plain or (content.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        return None
    isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
    whole = not parts[1].get("add_prefix_space") and not parts[1].get("use_regex", True)
    return (parts[0].get("pattern") or {}).get("Regex") if isolated and whole else None


def _digest(content: Mapping[str, Any], before: tuple[int, ...]) -> str:
    """Return a digest of what ids depend on; fields that say nothing (null, false) do not count."""
    model = {name: value for name, value in content["model"].items() if value not in (None, False, "", [])}
    parts = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "added_tokens")}
    text = json.dumps([model, parts, before], sort_keys=True, default=list)
    return hashlib.sha256(text.replace('"trim_offsets": true', '"trim_offsets": false').encode()).hexdigest()
