"""Which scorer a name stands for: families found by folder, each with the scorers of its `scorer.py`.

A `scorer.py` is pure: it states its scorers in a tuple `SCORERS` and imports nothing of what finds them. Where a
benchmark or a metric is scored as another kind is, `SAME_AS` says so: other name -> name of the scorer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType

from megatron_v2pe.base.plugins import VARIABLE, family_modules
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark_registry import FAMILIES
from megatron_v2pe.evaluate.scorers import Scorer
from megatron_v2pe.evaluate.scorers.base import STOPS, Item, Judgement, describe

Judge = Callable[[Item], Judgement]


class _Scorers(Mapping[str, Scorer]):
    """Every scorer by its name; families are loaded when one is first asked for."""

    def __getitem__(self, name: str) -> Scorer:
        return _found(os.environ.get(VARIABLE, ""))[0][name]

    def __iter__(self) -> Iterator[str]:
        return iter(_found(os.environ.get(VARIABLE, ""))[0])

    def __len__(self) -> int:
        return len(_found(os.environ.get(VARIABLE, ""))[0])


SCORERS: Mapping[str, Scorer] = _Scorers()
"""Every kind of item by its name."""


def scorer_of(name: str) -> Scorer:
    """Return the scorer of a kind of item or of a benchmark.

    Raises:
        DataError: there is none of that name.
    """
    scorers, same_as = _found(os.environ.get(VARIABLE, ""))
    kind = same_as.get(name, name)
    if kind not in scorers:
        raise DataError(f"no scorer is called {name!r}; there are {', '.join(sorted([*scorers, *same_as]))}")
    return scorers[kind]


@cache
def _found(plugins: str) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Return the scorers of all families by name, and the other names of some.

    Args:
        plugins: the folders of families from outside; what is found is kept as long as they are the same.

    Raises:
        ConfigError: two families have a scorer of one name, or a `scorer.py` states no scorers.
    """
    scorers: dict[str, Scorer] = {}
    same_as: dict[str, str] = {}
    for module in family_modules(FAMILIES, "scorer"):
        stated = getattr(module, "SCORERS", None)
        if not isinstance(stated, (tuple, list)) or not all(isinstance(scorer, Scorer) for scorer in stated):
            raise ConfigError(f"{module.__file__}: SCORERS is missing or holds something else than scorers")
        is_ours = module.__name__.startswith(f"{FAMILIES}.")
        for scorer in stated if is_ours else [_watched(scorer, module) for scorer in stated]:
            if scorers.setdefault(scorer.name, scorer) is not scorer:
                raise ConfigError(f"scorer {scorer.name!r} stands in two families; rename one of them")
        same_as |= getattr(module, "SAME_AS", {})
    return scorers, same_as


def _watched(scorer: Scorer, module: ModuleType) -> Scorer:
    """Return a scorer from outside whose faults are named with its file."""

    def watched(
        judge: Callable[[Item], Judgement], lets_pass: tuple[type[Exception], ...]
    ) -> Callable[[Item], Judgement]:
        def judged(item: Item) -> Judgement:
            where = f"{module.__file__}: scorer {scorer.name!r}"
            try:
                judgement = judge(item)
            except (DataError, *lets_pass):
                raise
            except Exception as error:  # anything: it is code of somebody else's
                raise DataError(f"{where} fails at {dict(item)!r:.300}: {describe(error)}") from error
            score = judgement.get("score") if isinstance(judgement, Mapping) else None
            if not isinstance(score, (int, float)) or not 0 <= score <= 1:
                raise DataError(f"{where} returns {judgement!r:.100}, expected a 'score' from 0 to 1")
            return judgement

        return judged

    return replace(scorer, reference=watched(scorer.reference, STOPS), corrected=watched(scorer.corrected, ()))
