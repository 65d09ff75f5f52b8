"""Whether a model sees objects that are not there: POPE's yes and no.

Source: Li et al., 2023, with V2PE's reading of answers: of the text before the first dot, without commas, split at
spaces, the words `No`, `not` or `no` make a no, everything else a yes. "Yes" is the positive class. Per category TP,
FP, TN, FN, accuracy, precision, recall, F1 and the share of yes; the number papers print is the mean F1 of categories.

Defects of the reference: `NO`, `no!` and no answer at all are a yes; answers are paired with labels by their order
alone, so that a label file of another release is scored without a word; a category without a predicted yes stops it;
the mean is not printed. The corrected form reads what the answer states (`yes_no`), takes an answer that states neither
("Not sure") for wrong (`undecided`), and gives 0 for a ratio of nothing. `check_labels` refuses labels that belong to
other questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    as_text,
    describe,
    field,
    first_error,
    mean,
)
from megatron_v2pe.evaluate.scorers.yes_no import yes_or_no

SUFFIX = "\nAnswer the question using a single word or phrase."
"""What the question file adds to the text of the label file."""


def judge_reference(text: str) -> str:
    """Read yes or no out of an answer, as the reference does."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if "No" in words or "not" in words or "no" in words else "yes"


def judge_corrected(text: str) -> str:
    """Read yes or no out of an answer (`yes_no`); empty if it says neither."""
    return yes_or_no(text)


def check_labels(questions: Sequence[Mapping[str, Any]], labels: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Check that every label belongs to the question it would be paired with.

    Args:
        questions: of the question file, in order: `category`, `image`, `text`.
        labels: of the label file of each category, in order: `image`, `text`.

    Raises:
        DataError: says of which category, how many do not match, and which is the first.
    """
    for category, lines in labels.items():
        asked = [question for question in questions if question["category"] == category]
        wrong = [
            number for number, pair in enumerate(zip(asked, lines, strict=False), 1) if _key(pair[0]) != _key(pair[1])
        ]
        unpaired = abs(len(asked) - len(lines))
        if wrong or unpaired:
            first = f", the first is number {wrong[0]}" if wrong else ""
            raise DataError(
                f"POPE {category}: {len(wrong) + unpaired} questions do not match the label file: it has {len(lines)} "
                f"labels for {len(asked)} questions, and {len(wrong)} labels are of another image or text{first}; the "
                "label file is of another release than the question file"
            )


def _key(line: Mapping[str, Any]) -> tuple[str, str]:
    return line["image"], line["text"].removesuffix(SUFFIX).strip()


def _reference(item: Item) -> Judgement:
    return _judgement(judge_reference(field(item, "prediction")), item)


def _corrected(item: Item) -> Judgement:
    return _judgement(judge_corrected(as_text(field(item, "prediction"))), item)


def _judgement(judged: str, item: Item) -> Judgement:
    score = {"score": float(judged == _truth(item))} if "answer" in item else {}
    return {"judged": judged, **score}


def _truth(item: Item) -> str:
    """Return the label; as in the reference, all that is not `no` is a yes."""
    return "no" if item["answer"] == "no" else "yes"


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return the numbers of `all` items and of each category."""
    pairs: dict[str, list[tuple[str, str]]] = {"all": []}
    for item, judgement in zip(items, judgements, strict=True):
        if "judged" in judgement:
            field(item, "answer")
            pair = (judgement["judged"], _truth(item))
            pairs["all"].append(pair)
            if "category" in item:
                pairs.setdefault(item["category"], []).append(pair)
    numbers = _reference_numbers if mode == "reference" else _corrected_numbers
    return {category: numbers(members) for category, members in pairs.items()} | first_error(judgements)


def _counts(pairs: Sequence[tuple[str, str]]) -> Summary:
    return {
        "TP": sum(pair == ("yes", "yes") for pair in pairs),
        "FP": sum(judged != "no" and truth == "no" for judged, truth in pairs),
        "TN": sum(pair == ("no", "no") for pair in pairs),
        "FN": sum(judged != "yes" and truth == "yes" for judged, truth in pairs),
    }


def _reference_numbers(pairs: Sequence[tuple[str, str]]) -> Summary:
    counts = _counts(pairs)
    try:
        yes_ratio = sum(judged == "yes" for judged, _ in pairs) / len(pairs)
        precision = float(counts["TP"]) / float(counts["TP"] + counts["FP"])
        recall = float(counts["TP"]) / float(counts["TP"] + counts["FN"])
        f1 = 2 * precision * recall / (precision + recall)
    except ZeroDivisionError as error:
        return {**counts, "error": describe(error)}
    accuracy = (counts["TP"] + counts["TN"]) / len(pairs)
    return {**counts, "accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": yes_ratio}


def _corrected_numbers(pairs: Sequence[tuple[str, str]]) -> Summary:
    counts = _counts(pairs)
    correct = counts["TP"] + counts["TN"]
    return {
        **counts,
        "undecided": sum(judged == "" for judged, _ in pairs),
        "accuracy": _ratio(correct, len(pairs)),
        "precision": _ratio(counts["TP"], counts["TP"] + counts["FP"]),
        "recall": _ratio(counts["TP"], counts["TP"] + counts["FN"]),
        "f1": _ratio(2 * counts["TP"], 2 * counts["TP"] + counts["FP"] + counts["FN"]),
        "yes_ratio": _ratio(sum(judged == "yes" for judged, _ in pairs), len(pairs)),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    """Mean F1 of the categories; of all items where they name none."""
    groups = {name: numbers for name, numbers in summary.items() if isinstance(numbers, dict)}
    categories = {name: numbers for name, numbers in groups.items() if name != "all"} or groups
    stopped = [name for name, numbers in categories.items() if "error" in numbers]
    if stopped:
        raise DataError(f"POPE: there is no F1 of {', '.join(stopped)}: {categories[stopped[0]]['error']}")
    return 100.0 * mean([numbers["f1"] for numbers in categories.values()])


POPE = Scorer("pope", _reference, _corrected, _summarise, _percent)
"""Items: `prediction`, `answer` (`yes` or `no`), `category` (`adversarial`, `popular`, `random`)."""
SCORERS = (POPE,)
