"""How MileBench's 29 sets are scored: needles, open answers, choices; by number of images and by group.

Source: MileBench (Song et al., 2024) with V2PE's variant of its evaluator. Texts are processed first: line breaks
become spaces, punctuation goes by the rule of `answer_words`, outer quotes go, lower case. Then, by the kind of set:

- `needle` (Text- and ImageNeedleInAHaystack): the truth is one of the prediction's words;
- `mmcoqa`: the truth stands in the prediction;
- `rouge` (open-ended): `rouge_l`; a score has three decimals in the list of scores, all in the mean;
- `multichoice`: `milebench_choice`.

Each also by number of images: Few below 6, Medium to 31, Many beyond. Groups of sets and their mean are unweighted;
they are inferred from published rows, the reference computes none.

Defects of the reference: those of `rouge_l` and `milebench_choice`; a needle of two words is never found; `mmcoqa`
finds `2ab3` in `12ab34`. The corrected form looks for whole words in both, in what the answer states or does not reject
(`stated_answer`); of open answers it takes thoughts, tags and print away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.milebench.choice import extract, option_letters
from megatron_v2pe.evaluate.families.milebench.rouge_l import rouge_l, rouge_l_reference
from megatron_v2pe.evaluate.scorers.answer_words import processed
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
    true_texts,
)
from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, trimmed
from megatron_v2pe.evaluate.scorers.stated_answer import read_long, stands_in, without_rejected
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

GROUPS = {
    "T": (
        "ActionLocalization",
        "ActionPrediction",
        "ActionSequence",
        "CharacterOrder",
        "CounterfactualInference",
        "EgocentricNavigation",
        "MovingAttribute",
        "MovingDirection",
        "ObjectExistence",
        "ObjectInteraction",
        "ObjectShuffle",
        "SceneTransition",
        "StateChange",
    ),
    "S": (
        "ALFRED",
        "CLEVR-Change",
        "DocVQA",
        "IEdit",
        "MMCoQA",
        "MultiModalQA",
        "nuscenes",
        "OCR-VQA",
        "SlideVQA",
        "Spot-the-Diff",
        "TQA",
        "WebQA",
        "WikiVQA",
    ),
    "NI": ("TextNeedleInAHaystack", "ImageNeedleInAHaystack"),
}
"""Temporal, semantic and needle sets; GPR1200 stands alone."""
SETS = (*(name for group in GROUPS.values() for name in group), "GPR1200")
KINDS = ("needle", "mmcoqa", "rouge", "multichoice")
_LEVELS = ("Few", "Medium", "Many")


def kind_of(dataset: str, question_type: str) -> str:
    """Return how a set is scored.

    Args:
        dataset: its name.
        question_type: `open-ended` or `multi-choice`, from its `meta_data`.

    Raises:
        DataError: the type is another.
    """
    if "NeedleInAHaystack" in dataset:
        return "needle"
    if "MMCoQA" in dataset:
        return "mmcoqa"
    kinds = {"open-ended": "rouge", "multi-choice": "multichoice"}
    if question_type not in kinds:
        raise DataError(f"MileBench {dataset}: question_type {question_type!r}: it is open-ended or multi-choice")
    return kinds[question_type]


def _reference(item: Item) -> Judgement:
    truth, prediction = processed(field(item, "answer")), processed(field(item, "prediction"))
    kind = _kind(item)
    if kind == "needle":
        return {"score": float(truth in prediction.split())}
    if kind == "mmcoqa":
        return {"score": float(truth in prediction)}
    if kind == "rouge":
        assert truth != ""
        value = rouge_l_reference(prediction, truth) if prediction else 0.0
        return {"score": round(value, 3), "rouge_f": value}
    choices = [processed(choice) for choice in field(item, "choices")]
    assert truth in choices
    letters = option_letters(len(choices))
    extracted = extract(prediction, dict(zip(letters, choices, strict=True)))
    return {"extracted": extracted, "score": float(extracted == letters[choices.index(truth)])}


def _corrected(item: Item) -> Judgement:
    raw, (truth,) = as_text(field(item, "prediction")), true_texts(item, "answer")
    true, kind = processed(trimmed(truth), 0), _kind(item)
    if kind in ("needle", "mmcoqa"):
        looked = (
            processed(trimmed(clean_answer(raw)), 0) == true,
            stands_in(processed(without_rejected(raw, [truth]), 0), true),
        )
        return {"score": float(bool(truth.strip()) and any(looked))}
    if kind == "rouge":
        value = rouge_l(processed(read_long(raw), 0), true)
        return {"score": value, "rouge_f": value}
    choices = true_texts(item, "choices")
    letters = option_letters(len(choices))
    if truth not in choices:
        raise DataError(f"MileBench answer {truth!r} is none of the choices {choices}")
    extracted = named_letter(raw, dict(zip(letters, choices, strict=True))) or ""
    right = extracted != "" and choices[letters.index(extracted)] == truth
    return {"extracted": extracted, "score": float(right)}


def _kind(item: Item) -> str:
    kind = field(item, "kind")
    if kind not in KINDS:
        raise DataError(f"MileBench kind {kind!r}: it is one of {', '.join(KINDS)}")
    return kind


def image_level(images: int) -> str:
    """Return what MileBench calls a number of images."""
    return "Few" if images < 6 else "Many" if images > 31 else "Medium"


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return the numbers of each set, or of each kind where items name no `dataset`; in corrected mode also groups."""
    sets: dict[str, list[tuple[Item, Judgement]]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        if "score" in judgement:
            sets.setdefault(item.get("dataset", _kind(item)), []).append((item, judgement))
    summary: Summary = {name: _set_numbers(members) for name, members in sets.items()}
    if mode == "corrected":
        summary |= group_means({name: _main(numbers) for name, numbers in summary.items()})
    return summary | first_error(judgements)


def _set_numbers(members: Sequence[tuple[Item, Judgement]]) -> Summary:
    key = "rouge_f" if "rouge_f" in members[0][1] else "score"
    levels: dict[str, list[float]] = {level: [] for level in _LEVELS}
    for item, judgement in members:
        levels[image_level(item.get("n_images", 0))].append(judgement[key])
    return {
        "Rouge-L f" if key == "rouge_f" else "Accuracy": mean(judged([judgement for _, judgement in members], key)),
        "image_quantity_level-Accuracy": {level: mean(scores) if scores else 0 for level, scores in levels.items()},
        "image_quantity_level-Result": {level: [sum(scores), len(scores)] for level, scores in levels.items()},
    }


def _main(numbers: Summary) -> float:
    return numbers["Rouge-L f" if "Rouge-L f" in numbers else "Accuracy"]


def group_means(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each group all of whose sets have a score, and of the three groups if all are there.

    Args:
        scores: of sets by name, in any unit.
    """
    means = {
        group: mean([scores[name] for name in names])
        for group, names in GROUPS.items()
        if all(name in scores for name in names)
    }
    return means | ({"Avg": mean(list(means.values()))} if len(means) == len(GROUPS) else {})


def _percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    """Return the mean of the groups; where not all sets are there, the mean of those that are."""
    scores = {name: _main(numbers) for name, numbers in summary.items() if isinstance(numbers, dict)}
    return 100.0 * group_means(scores).get("Avg", mean(list(scores.values())))


MILEBENCH = Scorer("milebench", _reference, _corrected, _summarise, _percent)
"""Items: `prediction`, `answer`, `kind`, `n_images`, `choices` for multichoice, and `dataset` for groups."""
SCORERS = (MILEBENCH,)
