"""Make long multi-image documents with one question at the end, in the V2PE-Data layout.

    python examples/long_context/make_data.py OUT [--tokens 8192] [--documents 24]

OUT/pictures/                        the quickstart's data set; its 28 pictures are used
OUT/texts/pool.jsonl                 all text that can occur, once: the tokenizer is trained on it
OUT/annotation/long_context.jsonl    the documents
OUT/meta.json                        the data list that training reads; its paths start with OUT as given

A document is text (descriptions of scikit-learn's data sets, out of its wheel) with numbered pictures in between, each
drawn anew, and a question about one of them: a needle in a haystack, a handful of learned tokens among thousands.
Lengths are exact for the quickstart's model. The same files come out of every run.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))
import make_data as quickstart  # noqa: E402 (the quickstart's, found in its folder)
from make_model import PATCH, PIECES, TILE  # noqa: E402

from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.data.conversation import get_template  # noqa: E402
from megatron_v2pe.data.tokenize import encode_conversation  # noqa: E402
from megatron_v2pe.data.tokenizer import Tokenizer  # noqa: E402
from megatron_v2pe.data.types import IGNORE_INDEX  # noqa: E402
from megatron_v2pe.workshop.synthetic.tokenizer import read_texts, write_tokenizer  # noqa: E402

SEED = 5
SHORTEST = 512
"""Tokens a document must have at least."""
TOKENS_PER_TILE = (TILE // PATCH // 2) ** 2  # a pixel shuffle makes one token of 2 x 2 patches
LONGEST_TEXT = 200
"""Characters of text between two pictures, at most."""

ANSWERS = {name: what for name, (what, _) in quickstart.PICTURES.items()} | {f"digit_{n}": f"{n}." for n in range(10)}
"""Picture -> what is in it."""


@dataclass(frozen=True)
class Lengths:
    """What one document comes to."""

    tokens: int
    learned: int
    pictures: int


def read_pool() -> list[str]:
    """Return passages of plain prose out of scikit-learn's wheel, each of at most `LONGEST_TEXT` characters."""
    passages: list[str] = []
    folder = resources.files("sklearn.datasets.descr")
    for file in sorted((file for file in folder.iterdir() if file.name.endswith(".rst")), key=lambda file: file.name):
        for block in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")):
            text = " ".join(block.split())
            if len(text) >= 60 and text[0].isalpha() and not re.search(r"[`_|<>=:]|\.\. ", text):
                passages += _passages(text)
    return list(dict.fromkeys(passages))


def _passages(text: str) -> list[str]:
    """Cut a paragraph between words."""
    passages = [""]
    for word in text.split():
        if len(passages[-1]) + 1 + len(word) > LONGEST_TEXT:
            passages.append("")
        passages[-1] = f"{passages[-1]} {word}".lstrip()
    return passages


def question(name: str, number: int) -> str:
    """Return what is asked about a picture."""
    return f"Which digit is written in Image-{number}?" if name.startswith("digit") else f"What is in Image-{number}?"


def pool_samples(pool: list[str]) -> list[dict[str, Any]]:
    """Return text-only samples that hold every passage, question and answer."""
    asked = [(question(name, number), answer) for number, (name, answer) in enumerate(ANSWERS.items(), 1)]
    said = [(f"{text}\nImage-1: ", asked[number % len(asked)]) for number, text in enumerate(pool)]
    return [{"conversations": quickstart.talk((f"{text}\n{ask}", answer))} for text, (ask, answer) in said]


def measure(sample: dict[str, Any], tokenizer: Tokenizer) -> Lengths:
    """Return what training will make of a document."""
    turns = [(turn["from"], turn["value"]) for turn in sample["conversations"]]
    pictures = len(sample["image"])
    ids, labels = encode_conversation(tokenizer, get_template("internlm2-chat"), turns, [1] * pictures, TOKENS_PER_TILE)
    return Lengths(len(ids), int((labels != IGNORE_INDEX).sum()), pictures)


def document(pool: list[str], tokens: int, tokenizer: Tokenizer, draw: random.Random) -> dict[str, Any]:
    """Return a document of at most `tokens` tokens, short of them by less than one passage and picture."""
    texts = draw.sample(pool, len(pool))
    names = draw.choices(list(ANSWERS), k=tokens // TOKENS_PER_TILE)
    depth = draw.random()

    def first(count: int) -> dict[str, Any]:
        parts = [f"{texts[n % len(texts)]}\nImage-{n + 1}: <image>\n" for n in range(count)]
        needle = int(depth * count)
        asked = question(names[needle], needle + 1)
        return {
            "image": [quickstart.path_of(name) for name in names[:count]],
            "conversations": quickstart.talk(("".join(parts) + asked, ANSWERS[names[needle]])),
        }

    low, high = 1, len(names) + 1  # `low` pictures fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(first(middle), tokenizer).tokens <= tokens else (low, middle)
    return first(low)


def make(out: Path, tokens: int, documents: int) -> list[Lengths]:
    """Write the whole data set.

    Returns:
        The length of each document.
    """
    quickstart.make(out / "pictures")
    pool = read_pool()
    _write_lines(out / "texts" / "pool.jsonl", (json.dumps(sample) for sample in pool_samples(pool)))
    with tempfile.TemporaryDirectory(prefix="long-context-") as scratch:
        write_tokenizer(Path(scratch), read_texts(out / "texts"), PIECES)
        tokenizer = Tokenizer.from_folder(scratch)
        draw = random.Random(SEED)
        samples = [document(pool, tokens, tokenizer, draw) for _ in range(documents)]
        lengths = [measure(sample, tokenizer) for sample in samples]
    annotation = out / "annotation" / "long_context.jsonl"
    _write_lines(annotation, (json.dumps(sample) for sample in samples))
    entry = {
        "root": f"{out / 'pictures' / 'image'}/",
        "annotation": str(annotation),
        "data_augment": False,
        "repeat_time": 1,
        "max_dynamic_patch": 1,
        "length": len(samples),
    }
    _write_lines(out / "meta.json", [json.dumps({"long_context": entry}, indent=2)])  # last: the rest is there
    return lengths


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make long multi-image documents in the V2PE-Data layout.")
    parser.add_argument("out", type=Path, help="folder to write to; must not hold files yet")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a document, at most (default: 8192)")
    parser.add_argument("--documents", type=int, default=24, help="number of documents (default: 24)")
    args = parser.parse_args(argv)
    if args.tokens < SHORTEST or args.documents < 1:
        print(f"error: --tokens must be {SHORTEST} or more and --documents 1 or more", file=sys.stderr)
        return 1
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        print(f"error: {args.out} is in use; name a new or empty folder", file=sys.stderr)
        return 1
    lengths = make(args.out, args.tokens, args.documents)
    for what in ("tokens", "pictures", "learned"):
        values = [getattr(length, what) for length in lengths]
        name = "learned tokens" if what == "learned" else what
        print(f"{name + ' per document':<28} {min(values):>7,} to {max(values):,}")
    print(f"{args.out}: {len(lengths)} documents, {sum(length.tokens for length in lengths):,} tokens in all")
    return 0


if __name__ == "__main__":
    run_tool(main)
