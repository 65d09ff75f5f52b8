"""How Long-VQA's seventeen tasks are scored: rectified answers, one metric per task.

Source: V2PE's Long-VQA scorer; `rectify` says what happens to texts, `longvqa_metrics` what is computed; in percent. A
task the table does not know is scored by relaxed accuracy without rectification. The reference averages nothing; here
the number of a set of items is the unweighted mean over its tasks. A length's items are scored by themselves.

Three kinds of items: `longvqa` (task, rectified, its metric), `longvqa_metric` (one metric, as it stands),
`longvqa_rectify` (the rectified text). Defects of the reference: those of both; a list of true answers stops it. The
corrected form rectifies each, and takes what an answer states (`stated_answer`).
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.evaluate.families.long_vqa.metrics import CAPTIONS, HELD, Answered, metric
from megatron_v2pe.evaluate.families.long_vqa.rectify import rectified_pair, rectify, rectify_corrected
from megatron_v2pe.evaluate.scorers.base import (
    STOPS,
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    as_list,
    as_text,
    describe,
    field,
    first_error,
    mean,
    no_number,
    true_texts,
)
from megatron_v2pe.evaluate.scorers.clean_answer import plain, trimmed
from megatron_v2pe.evaluate.scorers.stated_answer import read_long, read_short, without_rejected

LENGTHS = (32, 40, 48, 56, 64)
"""In thousands of tokens."""
METRIC_OF = {
    **dict.fromkeys(("chartqa", "clevr", "dvqa", "gqa", "ocrvqa"), "RACC"),
    **dict.fromkeys(("svqa", "tabfact"), "EACC"),
    **dict.fromkeys(("deepform", "kleistercharity"), "F1"),
    **dict.fromkeys(("docvqa", "infovqa"), "ANLS"),
    **dict.fromkeys(("okvqa", "textvqa", "vizwiz"), "TEXTVQA"),
    **dict.fromkeys(("textcaps", "visualmrc"), "BLEU4"),
    "wikitablequestions": "WTQ",
}
TASKS = tuple(METRIC_OF)
UNKNOWN = "RACC"


def metric_of(task: str) -> str:
    """Return the name of a task's metric."""
    return METRIC_OF.get(task, UNKNOWN)


def _answered(item: Item, mode: Mode, number: int = 0) -> Answered:
    """Return what a metric reads of an item, rectified if it is of a task."""
    if mode == "reference":
        prediction, truths = field(item, "prediction"), field(item, "answer")
        if "task" in item:
            prediction, truths = rectify(item["task"], prediction), rectify(item["task"], truths)
    else:
        prediction, truths = as_text(field(item, "prediction")), true_texts(item, "answer")
        if "task" in item:
            prediction, truths = rectified_pair(item["task"], prediction, truths)
        else:
            prediction, truths = _read(_metric_name(item), prediction, truths)
    return Answered(item.get("id", number), prediction, as_list(truths))


def _read(name: str, prediction: str, truths: Sequence[str]) -> tuple[str, list[str]]:
    """Return what a metric compares of an answer and of the true ones, marks and quotes around them dropped."""
    if name in CAPTIONS:
        said = read_long(prediction)
    else:
        said = read_short(prediction, truths, plain)
        if name in HELD and plain(said) not in map(plain, truths):
            said = without_rejected(prediction, truths)
    return said, [trimmed(truth) for truth in truths]


def _metric_name(item: Item) -> str:
    return item["metric"] if "metric" in item else metric_of(field(item, "task"))


def _reference(item: Item) -> Judgement:
    answered = _answered(item, "reference")
    score = metric(_metric_name(item), "reference")([answered])
    if "task" not in item:
        return {"score": score}
    return {"rectified_prediction": answered.prediction, "rectified_answer": answered.truths[0], "score": score}


def _corrected(item: Item) -> Judgement:
    return {"score": metric(_metric_name(item), "corrected")([_answered(item, "corrected")])}


def _corpus(items: Sequence[tuple[int, Item]], mode: Mode) -> Summary:
    """Return metric and score of some items together, or why the reference stops."""
    name = _metric_name(items[0][1])
    try:
        return {"metric": name, "score": metric(name, mode)([_answered(item, mode, n) for n, item in items])}
    except STOPS as error:
        if mode == "corrected":
            raise
        return {"metric": name, "error": describe(error)}


def _groups(items: Sequence[Item], judgements: Sequence[Judgement], key: str) -> dict[str, list[tuple[int, Item]]]:
    """Sort the items that were scored by a field."""
    groups: dict[str, list[tuple[int, Item]]] = {}
    for number, (item, judgement) in enumerate(zip(items, judgements, strict=True)):
        if "score" in judgement:
            groups.setdefault(item[key], []).append((number, item))
    return groups


def _summarise_tasks(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    groups = _groups(items, judgements, "task")
    return {task: _corpus(members, mode) for task, members in groups.items()} | first_error(judgements)


def _summarise_metrics(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    groups = {name: _corpus(members, mode) for name, members in _groups(items, judgements, "metric").items()}
    return {name: found.get("score", found) for name, found in groups.items()} | first_error(judgements)


def _rectify_reference(item: Item) -> Judgement:
    return {"rectified": rectify(field(item, "task"), field(item, "prediction"))}


def _rectify_corrected(item: Item) -> Judgement:
    return {"rectified": rectify_corrected(field(item, "task"), as_text(field(item, "prediction")))}


LONGVQA = Scorer(
    "longvqa",
    _reference,
    _corrected,
    _summarise_tasks,
    lambda summary, judgements: mean([found["score"] for found in summary.values() if "score" in found]),
    most=1000.0,  # CIDEr
)
"""Items: `task`, `prediction`, `answer`, and `id` where questions have one. Scores are percentages."""
LONGVQA_METRIC = Scorer(
    "longvqa_metric",
    _reference,
    _corrected,
    _summarise_metrics,
    lambda summary, judgements: mean([score for score in summary.values() if isinstance(score, float)]),
    most=1000.0,  # CIDEr
)
"""Items: `metric`, `prediction`, `answer` (one or several), and `id`. Scores are percentages."""
LONGVQA_RECTIFY = Scorer(
    "longvqa_rectify",
    _rectify_reference,
    _rectify_corrected,
    lambda items, judgements, mode: first_error(judgements),
    no_number,
)
"""Items: `task`, `prediction`."""
SCORERS = (LONGVQA, LONGVQA_METRIC, LONGVQA_RECTIFY)
