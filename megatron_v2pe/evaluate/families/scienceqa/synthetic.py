"""A made-up set of ScienceQA, in its published form."""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import SETS, Maker


@SETS.register("scienceqa")
def _scienceqa(make: Maker) -> None:
    rows = []
    for number in range(make.questions):
        path = f"data/scienceqa/images/test/{number}/image.png"
        drawn = make.picture(path)
        choices = make.choices(drawn.colour, 2 + number % 3)
        rows.append(
            {
                "image": path,
                "hint": "Look at the middle.\nThere is a shape." if number % 2 else "",
                "question": f"Which colour has the {drawn.shape}?",
                "choices": choices,
                "answer": choices.index(drawn.colour),
            }
        )
    make.lines("data/scienceqa/scienceqa_test_img.jsonl", rows)


_SAMPLE_OPTIONS = {"A": "cat", "B": "the dog", "C": "3.5"}
SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "scienceqa": [{"options": _SAMPLE_OPTIONS, "answer": "B"}],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
