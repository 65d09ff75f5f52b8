"""How fast text becomes ids: as here, by SentencePiece itself, and by the `tokenizers` library alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import models, normalizers

from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.word_pieces import WordPieces
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.library_files import open_library
from megatron_v2pe.foreign.tokenizer_settings import TokenizerSettings, TokenizerSource, source_of

DESCRIPTION = "text to ids: as here, beside SentencePiece and the tokenizers library alone"
Encode = Callable[[str], Sequence[int]]


def run(argv: list[str]) -> dict[str, Any]:
    """Measure all ways on the same text; see `--help` for the arguments.

    Those of a tokenizer that SentencePiece has are that, ours word by word and the library; of another, the library
    and ours.
    """
    arguments = _parser().parse_args(argv)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in arguments.texts]
    if not any(texts):
        raise ConfigError("--texts: the files hold no text")
    ways = _ways(arguments.tokenizer)
    first, reference = next(iter(ways.items()))
    rows = []
    for what, parts in (("documents", texts), ("lines", [line for text in texts for line in text.splitlines()])):
        expected = [list(reference(part)) for part in parts]
        for way, encode in ways.items():
            seconds = min(_seconds(encode, parts) for _ in range(arguments.repeats))
            right = sum(list(encode(part)) == ids for part, ids in zip(parts, expected, strict=True))
            rows.append(
                {
                    "text": what,
                    "way": way,
                    "characters a second": round(sum(map(len, parts)) / seconds),
                    f"ids of {first}": f"{right} of {len(parts)}",
                }
            )
    return {"characters": sum(map(len, texts)), "repeats": f"the best of {arguments.repeats}", "results": rows}


def _ways(path: Path) -> dict[str, Encode]:
    """Return ways to encode by name; the first is the one whose ids the others must give."""
    tokenizer = Tokenizer.from_folder(path)
    folder = Path(tokenizer.model_file).parent
    settings = TokenizerSettings.read(folder, ConfigError)
    source = source_of(folder, settings.name, ConfigError)
    if source not in (None, TokenizerSource.SENTENCE_PIECES):
        library = open_library(folder, source, settings, ConfigError).library
        alone: Encode = lambda text: library.encode(text, add_special_tokens=False).ids  # noqa: E731
        return {"tokenizers library": alone, "as here": tokenizer.encode}
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=tokenizer.model_file)
    ways: dict[str, Encode] = {"SentencePiece": processor.encode, "word by word": WordPieces(processor).encode}
    return ways | {"tokenizers library": _tokenizers_library(processor)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py tokenizing", description=DESCRIPTION)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FOLDER", help="HF folder, or a file of its tokenizer"
    )
    parser.add_argument("--texts", type=Path, nargs="+", required=True, metavar="FILE", help="text files")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each (default: %(default)s)")
    return parser


def _seconds(encode: Encode, parts: Sequence[str]) -> float:
    begin = time.perf_counter()
    for part in parts:
        encode(part)
    return time.perf_counter() - begin


def _tokenizers_library(processor: Any) -> Encode:
    """Return the same BPE in the `tokenizers` library.

    SentencePiece keeps no list of merges: every way to cut a piece into two pieces is one, in the order of the pieces.
    """
    vocabulary = {processor.id_to_piece(number): number for number in range(processor.get_piece_size())}
    merges: list[tuple[str, str]] = []
    for piece in vocabulary:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        known = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    library: Any = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Replace(" ", "\u2581")
    return lambda text: library.encode(text, add_special_tokens=False).ids
