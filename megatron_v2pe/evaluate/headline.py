"""The one number of a benchmark in percent: the console, `results.json` and the report take it from here.

Most scorers say it themselves. A set of MM-NIAH's long variant is one length, which the published report does not know:
its number is the mean over the fifths of depth that have samples. A user's own files of MM-NIAH's form have other
lengths than the published eleven: bins without samples are left out in either mode.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Benchmark
from megatron_v2pe.evaluate.report.needles import Needle, mean_over_depths
from megatron_v2pe.evaluate.scorers import Item, Judgement, Mode, Scorer


def headline(
    benchmark: Benchmark, scorer: Scorer, items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode
) -> float:
    """Return the one number of a benchmark in percent.

    Args:
        benchmark: whose items they are.
        scorer: of the benchmark.
        items: what was answered.
        judgements: of the items, in `mode`.
        mode: of the summary.

    Raises:
        DataError: there is none.
    """
    if benchmark.one_length:
        if not (needles := needles_of(scorer, items, judgements)):
            raise DataError("there are no answers to score")
        return mean_over_depths(needles)
    summary = scorer.summarise(items, judgements, "corrected" if benchmark.own else mode)
    return scorer.percent(summary, judgements)


def needles_of(scorer: Scorer, items: Sequence[Item], judgements: Sequence[Judgement]) -> tuple[Needle, ...]:
    """Return the judged samples with length and depth, where a scorer's items hide needles; nothing of others."""
    if scorer.needle is None:
        return ()
    return tuple(
        Needle(*scorer.needle(item), float(judgement["score"]))
        for item, judgement in zip(items, judgements, strict=True)
        if "score" in judgement
    )
