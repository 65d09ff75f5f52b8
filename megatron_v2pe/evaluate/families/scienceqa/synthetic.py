"""A made-up set of ScienceQA, in its published form."""

from __future__ import annotations

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
