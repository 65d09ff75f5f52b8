"""A made-up set of POPE, in its published form."""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import SETS, SHAPES, Maker

_ASK_SHORT = "Answer the question using a single word or phrase."


@SETS.register("pope")
def _pope(make: Maker) -> None:
    rows: list[dict[str, Any]] = []
    for category in ("adversarial", "popular", "random"):
        labels = []
        for number in range(2):
            image = f"COCO_val2014_{number:012d}.jpg"
            shape = make.named(image).picture(f"data/pope/val2014/{image}").shape
            seen = shape if number else next(other for other in SHAPES if other != shape)
            text = f"Is there a {seen} of the {category} kind in the image?"
            labels.append({"question_id": number + 1, "image": image, "text": text, "label": ("no", "yes")[number]})
            rows.append(
                {
                    "question_id": len(rows) + 1,
                    "image": image,
                    "text": f"{text}\n{_ASK_SHORT}",
                    "category": category,
                }
            )
        make.lines(f"data/pope/coco/coco_pope_{category}.json", labels)
    make.lines("data/pope/llava_pope_test.jsonl", rows)


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "pope": [{"answer": "yes", "category": "random"}, {"answer": "no", "category": "popular"}],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
