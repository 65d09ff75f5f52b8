"""A made-up set of SEED-Bench, in its published form."""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import LETTERS, SETS, Maker

_ASK_LETTER = "Answer with the option's letter from the given choices directly."


@SETS.register("seed")
def _seed(make: Maker) -> None:
    rows, official = [], []
    for number, kind in enumerate((1, 1, 2, 10)):
        path = f"SEED-Bench-image/{number}"
        drawn = make.draw()
        drawn.image.save(make.file(f"data/SEED/{path}"), format="PNG")  # published names have no ending
        options = make.choices(drawn.colour)
        key, answer = f"v{number}" if kind >= 10 else str(100 + number), LETTERS[options.index(drawn.colour)]
        question = f"What colour is the {drawn.shape}?"
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        text = "\n".join([question, *lines, _ASK_LETTER])
        rows.append({"image": path, "text": text, "question_id": key, "answer": answer})
        official.append(
            {
                "question_id": key if kind >= 10 else int(key),
                "question_type_id": kind,
                "data_type": "video" if kind >= 10 else "image",
                "question": question,
                **{f"choice_{letter.lower()}": option for letter, option in zip("ABCD", options, strict=True)},
                "answer": answer,
            }
        )
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    make.json("data/SEED/SEED-Bench.json", {"question_type": types, "questions": official})
    make.lines("data/SEED/seed.jsonl", rows)


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "seed": [{"answer": "A", "question_type_id": 1}, {"answer": "B", "question_type_id": 12}],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
