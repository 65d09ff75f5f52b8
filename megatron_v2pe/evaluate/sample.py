"""A seeded sample of a benchmark's questions, the same in every process, layout and run of the same seed."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.base.keyed_random import seed_of
from megatron_v2pe.evaluate.benchmark import Question


def drawn(name: str, questions: Sequence[Question], count: int | None, seed: int) -> list[Question]:
    """Draw questions of a benchmark without regard to their order in the file.

    A question is drawn by its id alone, so that a larger sample of the same seed holds a smaller one, and a file to
    which questions are added keeps most of what was drawn.

    Args:
        name: of the benchmark.
        questions: all of them.
        count: how many are drawn; None: all.
        seed: of the draw.

    Returns:
        The questions that were drawn, in the order of the benchmark; all where there are no more than `count`.
    """
    if count is None or count >= len(questions):
        return list(questions)
    order = sorted(questions, key=lambda question: seed_of(seed, name, question.id, purpose="eval sample"))
    kept = {question.id for question in order[:count]}
    return [question for question in questions if question.id in kept]
