"""What a scorer is: one item in, a judgement out; many items in, a summary out. Pure: no files, no ranks, no torch.

Two forms stand side by side, chosen by `mode`:

- `reference`: what the published V2PE code computes, its defects included, so that published numbers can be met;
- `corrected`: the same metric without those defects. A prediction that is no text scores 0 and never stops a run.

Where the published code would stop with an exception, the reference form says which one: `judge` returns it as
`error`, `score` raises `ReferenceStopsError`. What a user can mend (an item without a field its kind needs) is a
`DataError` in both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_v2pe.errors import DataError

Mode = Literal["reference", "corrected"]
Item = Mapping[str, Any]
"""What is known of one answered question: `prediction`, the truth, and what groups it."""
Judgement = dict[str, Any]
"""`score` (0 to 1 unless its kind says otherwise) beside what was read out of the prediction; or only `error`."""
Summary = dict[str, Any]
"""Numbers, or dictionaries of numbers, by the names the published evaluation prints."""

STOPS = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ReferenceStopsError(DataError):
    """The published evaluation would stop at this item."""


@dataclass(frozen=True)
class Scorer:
    """How items of one kind are scored: as the published code does it, and corrected."""

    name: str
    reference: Callable[[Item], Judgement]
    corrected: Callable[[Item], Judgement]
    summarise: Callable[[Sequence[Item], Sequence[Judgement], Mode], Summary]
    """Items, their judgements in order, mode -> summary."""
    percent: Callable[[Summary, Sequence[Judgement]], float]
    """Summary, judgements -> the one number papers print, in percent."""
    most: float = 100.0
    """The largest it can be."""
    needle: Callable[[Item], tuple[float, float]] | None = None
    """Item -> tokens of its context and depth of its needle, 0 to 1; None: its items hide no needle."""

    def judge(self, item: Item, mode: Mode = "reference") -> Judgement:
        """Return the score of an item beside what was read out of its prediction.

        In reference mode an item at which the published code stops gives `{"error": "IndexError: ..."}`.
        """
        if mode == "corrected":
            return self.corrected(item)
        if mode != "reference":
            raise DataError(f"mode {mode!r}: it is 'reference' or 'corrected'")
        try:
            return self.reference(item)
        except DataError:
            raise
        except STOPS as error:
            return {"error": describe(error)}

    def score(self, item: Item, mode: Mode = "reference") -> float:
        """Return the score of an item.

        Raises:
            ReferenceStopsError: in reference mode, where the published code stops.
            DataError: the item lacks a field, or has no truth to be compared with.
        """
        judgement = self.judge(item, mode)
        if "error" in judgement:
            raise ReferenceStopsError(f"{self.name}: the published evaluation stops here with {judgement['error']}")
        if "score" not in judgement:
            raise DataError(f"{self.name}: the item has no `answer` to compare with")
        return float(judgement["score"])

    def summary(self, items: Sequence[Item], mode: Mode = "reference") -> Summary:
        """Return what the published evaluation prints of a set of items.

        In reference mode, items at which it would have stopped are left out and the first reason stands under `error`.
        """
        return self.summarise(items, self._judge_all(items, mode), mode)

    def headline(self, items: Sequence[Item], mode: Mode = "reference") -> float:
        """Return the one number papers print of a set of items, in percent."""
        judgements = self._judge_all(items, mode)
        return self.percent(self.summarise(items, judgements, mode), judgements)

    def _judge_all(self, items: Sequence[Item], mode: Mode) -> list[Judgement]:
        if not items:
            raise DataError(f"{self.name}: there are no items to score")
        return [self.judge(item, mode) for item in items]


def describe(error: Exception) -> str:
    """Name an exception the way a traceback's last line does."""
    return f"{type(error).__name__}: {error}"


def field(item: Item, name: str) -> Any:
    """Return a field of an item.

    Raises:
        DataError: it is not there; names what is.
    """
    if name not in item:
        raise DataError(f"the item has no field {name!r}, only {sorted(item)}")
    return item[name]


def as_text(value: Any) -> str:
    """Return a prediction as text: text and numbers as they are, anything else (None, lists, ...) as no answer."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return ""


def as_list(truth: Any) -> list[Any]:
    """Return one or several true answers as a list."""
    return list(truth) if isinstance(truth, (list, tuple)) else [truth]


def true_texts(item: Item, name: str) -> list[str]:
    """Return the true answers of an item as texts, for the corrected forms.

    Raises:
        DataError: there is none, or one is neither text nor number.
    """
    truths = as_list(field(item, name))
    texts = [as_text(truth) for truth in truths]
    if not texts or any(isinstance(truth, bool) or not isinstance(truth, (str, int, float)) for truth in truths):
        raise DataError(f"{name} {truths!r}: true answers are one text or a list of texts")
    return texts


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def judged(judgements: Sequence[Judgement], key: str = "score") -> list[float]:
    """Return one number of each judgement that has it."""
    return [float(judgement[key]) for judgement in judgements if key in judgement]


def first_error(judgements: Sequence[Judgement]) -> Summary:
    """Return why the published evaluation would have stopped, under `error`; nothing if it would not."""
    errors = [judgement["error"] for judgement in judgements if "error" in judgement]
    return {"error": errors[0]} if errors else {}


def mean_summary(name: str) -> Callable[[Sequence[Item], Sequence[Judgement], Mode], Summary]:
    """Return a summary of one number, the mean score, called `name`."""

    def summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
        return {name: mean(judged(judgements)), **first_error(judgements)}

    return summarise


def percent_of(name: str) -> Callable[[Summary, Sequence[Judgement]], float]:
    """Return a reader of one number of a summary as a percentage."""
    return lambda summary, judgements: 100.0 * summary[name]


def no_number(summary: Summary, judgements: Sequence[Judgement]) -> float:
    """Refuse to give a number: for kinds that only read answers."""
    raise DataError("this kind of item reads answers and has no number of its own")
