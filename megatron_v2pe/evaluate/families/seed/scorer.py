"""How SEED-Bench's questions are answered, by type, and over images and videos.

Source: V2PE's evaluator and the official calculation: the first character of the prediction is compared with the
letter. Types 1 to 9 ask about images, 10 to 12 about videos; numbers are percentages with two decimals, and the
accuracy of exact equality is printed before them. The published number is that of the images.

Defects of the reference: an empty prediction stops it, as does a type without questions, so that a set without videos
has no score; `b` and `(B)` are wrong, `Both` is a B. The corrected form reads letters carefully (see `stated_option`)
and leaves out what has no questions.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    as_text,
    field,
    first_error,
    judged,
    mean,
)
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

IMAGE_TYPES = range(1, 10)
LETTERS = "ABCD"


def _reference(item: Item) -> Judgement:
    prediction, answer = field(item, "prediction"), field(item, "answer")
    letter = prediction if len(prediction) == 1 else prediction[0]
    return {"letter": letter, "equal": float(prediction == answer), "score": float(letter == answer)}


def _corrected(item: Item) -> Judgement:
    prediction, answer = as_text(field(item, "prediction")), field(item, "answer")
    letter = named_letter(prediction, item.get("options") or {}, LETTERS) or ""
    return {"letter": letter, "equal": float(prediction == answer), "score": float(letter == answer)}


def about_image(item: Item) -> bool:
    """Whether a question is about an image: by its type, else by its `data_type`.

    Raises:
        DataError: the item has neither.
    """
    if "question_type_id" in item:
        return item["question_type_id"] in IMAGE_TYPES
    if "data_type" in item:
        return item["data_type"] == "image"
    raise DataError("a SEED item has a question_type_id or a data_type")


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    types: dict[int, list[float]] = {}
    image: list[float] = []
    video: list[float] = []
    for item, judgement in zip(items, judgements, strict=True):
        if "score" in judgement:
            (image if about_image(item) else video).append(judgement["score"])
            if "question_type_id" in item:
                types.setdefault(item["question_type_id"], []).append(judgement["score"])
    summary: Summary = {f"type{number}": _percentage(types[number]) for number in sorted(types)}
    summary["Total accuracy"] = _percentage([*image, *video])
    if image:
        summary["Image accuracy"] = _percentage(image)
    if video:
        summary["Video accuracy"] = _percentage(video)
    summary["Acc@1 (equality, evaluate_seed.py)"] = mean(judged(judgements, "equal"))
    return summary | first_error(judgements)


def _percentage(scores: Sequence[float]) -> float:
    return round(mean(scores) * 100, 2)


def _percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    return summary["Image accuracy" if "Image accuracy" in summary else "Total accuracy"]


SEED = Scorer("seed", _reference, _corrected, _summarise, _percent)
"""Items: `prediction`, `answer`, `question_type_id` (1 to 12) or `data_type` (`image`, `video`), `options` if known."""
SCORERS = (SEED,)
