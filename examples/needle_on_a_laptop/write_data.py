"""Training documents of both stages and the questions of the evaluation, as files the project's tools read.

FOLDER/images/                            see `pictures`
FOLDER/{short,long}.jsonl                 training: needles alone, and in haystacks of mixed text and pages
FOLDER/{short,long}.json                  the data list of each
FOLDER/questions/{pages,words}_N.jsonl    questions at N tokens, in a haystack of pages or of words

The same files come out of every run with the same seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pictures
from start_model import TRAINED_LENGTH
from task import NEEDLES, Costs, Pictures, conversation, document

from megatron_v2pe.base.progress import followed

QUESTIONS = {"short": 12, "long": NEEDLES}
"""Questions about a document in training, by stage. In the short stage names are asked again and again: repeating an
earlier answer is learned first, finding the picture after it. They stay below `TRAINED_LENGTH`. In the long stage each
needle is asked about once, so that no answer can be repeated."""
TO_SAY = 2
"""Tokens of an answer that are not in the prompt: a digit and the end of the turn."""


def write_training(folder: Path, images: Path, costs: Costs, stage: str, documents: int, seed: int) -> None:
    """Write a stage's documents and their data list.

    Args:
        folder: of the data.
        images: where `pictures.write` put them.
        costs: see `start_model.measure`.
        stage: `short`: needles alone; `long`: documents of `TRAINED_LENGTH` tokens.
        documents: how many.
        seed: of the draws.
    """
    split, questions = pictures.read(images, "train"), QUESTIONS[stage]
    draw = random.Random(f"{seed} {stage}")

    def samples() -> Iterator[dict[str, object]]:
        for number in followed(range(documents), desc=stage, unit="documents"):
            room = 0 if stage == "short" else TRAINED_LENGTH - costs.shortest(questions)
            made = document(draw, split, room, draw.random())
            asked = (
                draw.choices(range(NEEDLES), k=questions) if stage == "short" else draw.sample(range(NEEDLES), NEEDLES)
            )
            yield {"id": number, "image": list(made.pictures), "conversations": conversation(made, asked)}

    _write_lines(folder / f"{stage}.jsonl", samples())
    entry = {"root": f"{images}/", "annotation": str(folder / f"{stage}.jsonl"), "data_augment": False}
    entry |= {"repeat_time": 1, "length": documents}
    (folder / f"{stage}.json").write_text(json.dumps({stage: entry}, indent=2) + "\n", encoding="utf-8")


def write_questions(
    folder: Path, images: Path, costs: Costs, lengths: Sequence[int], documents: int, seed: int
) -> None:
    """Write the evaluation's questions: prompts of exactly so many tokens, one question about each needle.

    Args:
        folder: of the data.
        images: where `pictures.write` put them.
        costs: see `start_model.measure`.
        lengths: tokens of a prompt.
        documents: of each length and haystack; each is asked about once.
        seed: of the draws.
    """
    split = pictures.read(images, "test")
    (folder / "questions").mkdir(parents=True, exist_ok=True)
    prompt = costs.shortest(1) - TO_SAY
    for length in lengths:
        for haystack, page_share in (("pages", 1.0), ("words", 0.0)):
            draw = random.Random(f"{seed} {haystack} {length}")
            rows = (_question(draw, split, images, length - prompt, page_share, number) for number in range(documents))
            _write_lines(folder / "questions" / f"{haystack}_{length}.jsonl", rows)


def _question(
    draw: random.Random, split: Pictures, images: Path, room: int, page_share: float, number: int
) -> dict[str, object]:
    made = document(draw, split, room, page_share)
    needle = number % len(made.names)
    return {
        "id": number,
        "question": made.text + made.names[needle],
        "images": [str(images / path) for path in made.pictures],
        "answer_begins": made.names[needle],
        "answer": made.digit(needle),
        "depth": round(made.depths[needle], 4),
        "max_new_tokens": 1,
    }


def _write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(path)
