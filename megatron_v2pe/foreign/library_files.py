"""The files of a tokenizer for the `tokenizers` library: read, checked, and opened by it.

Whatever the files are, they become one description in the form of `tokenizer.json`, whose parts are looked at here
before the library sees them: it takes ids that come twice without a word, gives added tokens other ids than a file
states, and ends in a panic at some damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers

from megatron_v2pe.foreign import library_rules as rules
from megatron_v2pe.foreign.files import LFS_POINTER, Kind, read_bytes
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
    LARGEST_FILE,
    LLAMA,
    MERGES,
    MODEL,
    VOCABULARY,
    WHOLE,
    TokenizerSettings,
    TokenizerSource,
    json_object,
    role_tokens,
)

_LONGEST_LINE = 1 << 12


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


def open_library(
    folder: Path, source: TokenizerSource, settings: TokenizerSettings, error: Kind, more: Sequence[AddedToken] = ()
) -> LibraryFiles:
    """Open the tokenizer of a folder by the library.

    Args:
        folder: with the files.
        source: which of them count; any but `SENTENCE_PIECES`.
        settings: of the folder.
        error: class of the error to raise.
        more: tokens of their own that no file states.

    Raises:
        V2PEError: of class `error`: a file is missing, damaged or of another kind; a merge names a token that is none;
            an id comes twice; an added token has another id than the library would give it. Names the file, the line
            or the entry.
    """
    stated = added_tokens(folder, error)
    if source is TokenizerSource.QWEN_FILES:
        content, where = _qwen_files(folder, stated, error), folder / VOCABULARY
    elif source is TokenizerSource.LLAMA_MODEL:
        content, where = _llama_model(folder, settings, error), folder / MODEL
    else:
        content, where = _whole(folder / WHOLE, source, settings, error), folder / WHOLE
    shown = printable(where)
    own = collected(tokens_in(content, shown, error), error) if "added_tokens" in content else {}
    for name, token in own.items():
        if (other := stated.get(name, token)).id != token.id:
            told = f"{printable(folder)} gives it {other.id} in another file"
            raise error(f"{shown}: token {printable(name)[:80]!r}: found id {token.id}, but {told}")
    roles = role_tokens(folder, error)  # what has a role is special, whatever is said of the token itself
    both = (replace(token, special=token.special or token.content in roles) for token in (own | stated).values())
    added = collected(((token, shown) for token in (*both, *more)), error)
    processor = content.pop("post_processor", None)
    content["added_tokens"] = [asdict(token) for token in sorted(added.values(), key=lambda token: token.id)]
    library = _opened(content, shown, error)
    _check_ids(library, added, shown, error)
    bos, eos = (_id_of(library, name) for name in (settings.bos, settings.eos))
    if settings.adds_bos is None and processor is not None:
        before = _before(library, processor, f"{shown}: post_processor", error)
    else:
        adds = settings.name == LLAMA if settings.adds_bos is None else settings.adds_bos
        before = (bos,) if adds and bos is not None else ()
    return LibraryFiles(
        library=library,
        pieces=1 + max(content["model"]["vocab"].values()),
        added=added,
        before=before,
        bos=bos,
        eos=eos,
        words=rules.words(content),
        byte_level=rules.is_byte_level(content),
        digest=_digest(content, before),
    )


def _qwen_files(folder: Path, stated: Mapping[str, AddedToken], error: Kind) -> dict[str, Any]:
    path = folder / VOCABULARY
    _refuse_pointer(path, error)
    _refuse_pointer(folder / MERGES, error)
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
    made = {left + right for left, right in merges} | set(stated)
    if unmade := [token for token in content if len(token) > 1 and token not in made]:
        raise error(
            f"{source}: no merge makes {len(unmade)} tokens of {VOCABULARY}, the first of which is "
            f"{printable(unmade[0])[:80]!r}: the file is cut short, or belongs to another vocabulary"
        )
    return {"version": "1.0", "model": rules.bpe(content, merges), **rules.QWEN}


def _refuse_pointer(path: Path, error: Kind) -> None:
    if (content := read_bytes(path, error, LARGEST_FILE)).startswith(LFS_POINTER):
        raise error(f"{printable(path)}: a Git LFS pointer of {len(content)} bytes; run `git lfs pull`")


def _llama_model(folder: Path, settings: TokenizerSettings, error: Kind) -> dict[str, Any]:
    """Describe a SentencePiece BPE for the library: each way to cut a piece into two is a merge, in the pieces' order.

    Pieces that stand for no text (`<s>`) and those that are never cut (user-defined) are tokens of their own.
    """
    pieces = load_pieces(folder / MODEL, error)
    numbers = range(pieces.get_piece_size())
    vocabulary = {pieces.id_to_piece(number): number for number in numbers}
    own = [number for number in numbers if pieces.is_control(number) or pieces.is_unknown(number)]
    tokens = [asdict(AddedToken(pieces.id_to_piece(number), number)) for number in own]
    return rules.llama(vocabulary, rules.merges_of(vocabulary), settings) | {
        "added_tokens": tokens + _user_defined(folder, pieces)
    }


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


def _whole(path: Path, source: TokenizerSource, settings: TokenizerSettings, error: Kind) -> dict[str, Any]:
    """Read `tokenizer.json`; its own parts make way for the rules of a class that has some."""
    shown = printable(path)
    _refuse_pointer(path, error)
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
    for name in rules.PARTS:
        rules.check_part(name, content.get(name), f"{shown}: {name}", error)
    kept = {name: content.get(name) for name in ("added_tokens", "post_processor") if name in content}
    if source is TokenizerSource.QWEN_WHOLE:
        return {"version": "1.0", "model": rules.bpe(vocabulary, merges), **rules.QWEN, **kept}
    if source is TokenizerSource.LLAMA_WHOLE and not rules.is_byte_level(content):
        return {**rules.llama(vocabulary, merges, settings), **kept}
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


def _before(library: tokenizers.Tokenizer, processor: Any, where: str, error: Kind) -> tuple[int, ...]:
    """Return the ids that a post-processor puts before a text; what it puts behind one is left to the template."""
    ids: list[int] = []
    for part in (Fields(part, where, error) for part in processor.get("processors") or [processor]):
        if part.text("type") != "TemplateProcessing":
            continue
        for item in part.get("single", list[dict[str, Any]]):
            if "SpecialToken" not in item:
                break
            name = Fields(item["SpecialToken"], f"{where}: single", error).text("id")
            if (number := library.token_to_id(name)) is None:
                raise error(f"{where}: single: {printable(name)[:80]!r} is no token of the vocabulary")
            ids.append(number)
    return tuple(ids)


def _digest(content: Mapping[str, Any], before: tuple[int, ...]) -> str:
    """Return a digest of what ids depend on; fields that say nothing (null, false) do not count."""
    model = {name: value for name, value in content["model"].items() if value not in (None, False, "", [])}
    parts = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "added_tokens")}
    text = json.dumps([model, parts, before], sort_keys=True, default=list)
    return hashlib.sha256(text.replace('"trim_offsets": true', '"trim_offsets": false').encode()).hexdigest()
