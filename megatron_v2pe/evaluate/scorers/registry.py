"""Which scorer belongs to which kind of item, and to which benchmark."""

from __future__ import annotations

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.scorers.anls import DOCVQA, STVQA_ANLS
from megatron_v2pe.evaluate.scorers.base import Scorer
from megatron_v2pe.evaluate.scorers.exact_match import EXACT, GQA
from megatron_v2pe.evaluate.scorers.longvqa import LONGVQA, LONGVQA_METRIC, LONGVQA_RECTIFY
from megatron_v2pe.evaluate.scorers.milebench import MILEBENCH
from megatron_v2pe.evaluate.scorers.mm_niah import MM_NIAH
from megatron_v2pe.evaluate.scorers.mmmu import MMMU
from megatron_v2pe.evaluate.scorers.mmmu_report import MMMU_REPORT
from megatron_v2pe.evaluate.scorers.multiple_choice import MMBENCH, SCIENCEQA
from megatron_v2pe.evaluate.scorers.mvbench import MVBENCH
from megatron_v2pe.evaluate.scorers.pope import POPE
from megatron_v2pe.evaluate.scorers.relaxed_accuracy import CHARTQA
from megatron_v2pe.evaluate.scorers.seed import SEED
from megatron_v2pe.evaluate.scorers.short_answer import SHORT_ANSWER
from megatron_v2pe.evaluate.scorers.vqa_accuracy import STVQA_ACCURACY, TEXTVQA

SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        TEXTVQA,
        STVQA_ACCURACY,
        STVQA_ANLS,
        DOCVQA,
        CHARTQA,
        EXACT,
        GQA,
        SHORT_ANSWER,
        POPE,
        MM_NIAH,
        MILEBENCH,
        LONGVQA,
        LONGVQA_METRIC,
        LONGVQA_RECTIFY,
        MMMU,
        MMMU_REPORT,
        MMBENCH,
        SCIENCEQA,
        SEED,
        MVBENCH,
    )
}
"""Every kind of item by its name."""

SAME_AS = {
    **dict.fromkeys(("vqav2", "okvqa", "vizwiz"), "textvqa"),
    **dict.fromkeys(("infovqa", "anls"), "docvqa"),
    **dict.fromkeys(("ai2d", "exact"), "ocrvqa"),
    "gqa": "gqa_convert",
    "ccbench": "mmbench",
}
"""Benchmarks and metrics that are scored as another kind is."""


def scorer_of(name: str) -> Scorer:
    """Return the scorer of a kind of item or of a benchmark.

    Raises:
        DataError: there is none of that name.
    """
    kind = SAME_AS.get(name, name)
    if kind not in SCORERS:
        raise DataError(f"no scorer is called {name!r}; there are {', '.join(sorted([*SCORERS, *SAME_AS]))}")
    return SCORERS[kind]
