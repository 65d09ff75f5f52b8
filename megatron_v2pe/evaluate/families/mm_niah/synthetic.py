"""Made-up sets of MM-NIAH and of its long variant, in their published form.

Lengths of contexts are declared, as MM-NIAH's files declare them, not real: samples are short.
"""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import COLOURS, SETS, Maker

_TASKS = tuple(f"{task}_{needle}" for task in ("retrieval", "counting", "reasoning") for needle in ("text", "image"))
_THOUSANDS = {"128k": 128, "256k": 256, "512k": 512, "1m": 1000}
"""Tokens of each long set."""


@SETS.register(*(f"mmniah_{split}_{task}" for split in ("val", "test") for task in _TASKS))
def _mmniah(make: Maker) -> None:
    _, split, task, needle = make.name.split("_")
    folder = f"dataset/benchmark/MM-NIAH/mm_niah_{split}"
    rows = [_needle(make, f"{folder}/images", task, needle, number) for number in range(make.questions)]
    make.lines(f"{folder}/annotations/{task}-{needle}.jsonl", rows)


@SETS.register(*(f"mmniah_long_{length}" for length in _THOUSANDS))
def _mmniah_long(make: Maker) -> None:
    length = make.name.removeprefix("mmniah_long_")
    rows = [
        _needle(make, "dataset/image/long_mr/val", "retrieval", "image", number, _THOUSANDS[length] * 1000)
        for number in range(make.questions)
    ]
    make.lines(f"dataset/val/long_mr_{length}/retrieval-image.jsonl", rows)


def _needle(make: Maker, images: str, task: str, needle: str, number: int, length: int | None = None) -> dict[str, Any]:
    key = f"{make.name}_{number}"
    shown = [make.picture(f"{images}/{key}_{place}.png") for place in range(2)]
    answer: Any = make.random.choice(COLOURS)
    words = f"The {'secret' if task != 'counting' else 'counted'} colour is {answer}. "
    context = f"A page of text. <image> {words if needle == 'text' else ''}Another page. <image> The last page."
    choices: list[str] | None = None
    pictures: list[str] | None = None
    if task == "counting":
        answer = [number, number + 1]
    elif needle == "image" and (task == "reasoning" or number % 2):
        pictures = [f"{key}_choice{place}.png" for place in range(3)]
        answer, colours = number % 3, make.random.sample(COLOURS, 3)
        for name, colour in zip(pictures, colours, strict=True):
            make.picture(f"{images}/{name}", colour)
    elif needle == "image":
        choices = make.choices(shown[0].colour)
        answer = choices.index(shown[0].colour)
    depth = round(0.2 * number + 0.1, 1)
    return {
        "id": number,
        "images_list": [f"{key}_{place}.png" for place in range(2)],
        "context": context,
        "question": "What is the colour?" if task != "counting" else "How often is it? Give a list, as in [1, 2].",
        "answer": answer,
        "meta": {
            "placed_depth": [depth, depth] if task == "counting" else depth,
            "context_length": length or 1500 * (number + 1),
            "context_length_text": 20,
            "context_length_image": 512,
            "num_images": 2,
            "needles": [words],
            "choices": choices,
            "choices_image_path": pictures,
        },
    }


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "mm_niah": [
        {"task": "retrieval-image-val", "answer": 1, "context_length": 5000, "placed_depth": 0.5},
        {"task": "counting-text-val", "answer": [1, 2], "context_length": 500, "placed_depth": [0.1, 1.0]},
        {"task": "reasoning-text-val", "answer": "four cats", "context_length": 99_000, "placed_depth": 1.0},
    ],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
