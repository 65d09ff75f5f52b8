"""How fast text becomes ids: word by word as here, by SentencePiece itself, and by the `tokenizers` library."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.word_pieces import WordPieces
from megatron_v2pe.errors import ConfigError

DESCRIPTION = "text to ids: word by word beside SentencePiece and the tokenizers library"
Encode = Callable[[str], Sequence[int]]


def run(argv: list[str]) -> dict[str, Any]:
    """Measure all three on the same text; see `--help` for the arguments."""
    arguments = _parser().parse_args(argv)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in arguments.texts]
    if not any(texts):
        raise ConfigError("--texts: the files hold no text")
    model = Tokenizer.from_folder(arguments.tokenizer).model_file
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=model)
    ways: dict[str, Encode] = {"SentencePiece": processor.encode, "word by word": WordPieces(processor).encode}
    if (library := _tokenizers_library(processor)) is not None:
        ways["tokenizers library"] = library
    rows = []
    for what, parts in (("documents", texts), ("lines", [line for text in texts for line in text.splitlines()])):
        expected = [list(processor.encode(part)) for part in parts]
        for way, encode in ways.items():
            seconds = min(_seconds(encode, parts) for _ in range(arguments.repeats))
            right = sum(list(encode(part)) == ids for part, ids in zip(parts, expected, strict=True))
            rows.append(
                {
                    "text": what,
                    "way": way,
                    "characters a second": round(sum(map(len, parts)) / seconds),
                    "SentencePiece's ids": f"{right} of {len(parts)}",
                }
            )
    return {"characters": sum(map(len, texts)), "repeats": f"the best of {arguments.repeats}", "results": rows}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py tokenizing", description=DESCRIPTION)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FOLDER", help="HF folder, or a tokenizer.model"
    )
    parser.add_argument("--texts", type=Path, nargs="+", required=True, metavar="FILE", help="text files")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each (default: %(default)s)")
    return parser


def _seconds(encode: Encode, parts: Sequence[str]) -> float:
    begin = time.perf_counter()
    for part in parts:
        encode(part)
    return time.perf_counter() - begin


def _tokenizers_library(processor: Any) -> Encode | None:
    """Return the same BPE in the `tokenizers` library, None where it is not installed.

    SentencePiece keeps no list of merges: every way to cut a piece into two pieces is one, in the order of the pieces.
    """
    try:
        from tokenizers import Tokenizer as Library
        from tokenizers import models, normalizers
    except ImportError:
        return None
    vocabulary = {processor.id_to_piece(number): number for number in range(processor.get_piece_size())}
    merges: list[tuple[str, str]] = []
    for piece in vocabulary:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        known = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    library: Any = Library(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Replace(" ", "\u2581")
    return lambda text: library.encode(text, add_special_tokens=False).ids
