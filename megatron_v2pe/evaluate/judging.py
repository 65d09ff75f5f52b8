"""What the answers of a benchmark are worth: each is judged once in each mode, and every number is made of that.

The console, `results.json` and the report ask `JudgedAnswers` for scores, summaries and single judgements. It judges
when a mode is first asked for and keeps what it found, so that no answer is judged twice in a process.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.answers import Answer
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.report.needle_grids import Needle, mean_over_depths
from megatron_v2pe.evaluate.scorer_names import scorer_of
from megatron_v2pe.evaluate.scorers import Item, Judgement, Mode, Scorer, Summary


class JudgedAnswers:
    """The questions of a run with their answers, judged when a mode is first asked for.

    A question without an answer, and one that ended in an error, is scored as an empty answer.
    """

    def __init__(self, benchmark: Benchmark, questions: Sequence[Question], answers: Sequence[Answer | None]) -> None:
        """Put questions and answers side by side.

        Args:
            benchmark: the benchmark the questions belong to.
            questions: the questions of the run.
            answers: the answer to each question; None where there is none.
        """
        self.benchmark, self.questions, self.answers = benchmark, questions, answers
        self._items: list[Item] | None = None
        self._judgements: dict[Mode, list[Judgement] | DataError] = {}

    @property
    def missing(self) -> list[str]:
        """Return the ids of the questions without an answer."""
        return [question.id for question, answer in self._pairs if answer is None]

    @property
    def failed(self) -> list[str]:
        """Return the ids of the questions that ended in an error."""
        return [question.id for question, answer in self._pairs if answer is not None and answer.error is not None]

    @property
    def texts(self) -> list[str]:
        """Return what was answered to each question, an empty text where nothing was."""
        return ["" if answer is None or answer.answer is None else answer.answer for answer in self.answers]

    @property
    def scorer(self) -> Scorer:
        """Return the benchmark's scorer; it must have one, see `Benchmark.scorer`."""
        assert self.benchmark.scorer is not None, f"a server scores {self.benchmark.name}"
        return scorer_of(self.benchmark.scorer)

    @property
    def items(self) -> list[Item]:
        """Return what the scorer reads of each question and its answer."""
        if self._items is None:
            pairs = zip(self.questions, self.texts, strict=True)
            self._items = [self.benchmark.item(question, text) for question, text in pairs]
        return self._items

    def judgements(self, mode: Mode) -> list[Judgement]:
        """Return the judgement of each answer.

        Raises:
            DataError: there is no answer to judge, or the scorer cannot read one.
        """
        if mode not in self._judgements:
            try:
                self._judgements[mode] = [self.scorer.judge(item, mode) for item in self.items]
            except DataError as error:
                self._judgements[mode] = error
        found = self._judgements[mode]
        if isinstance(found, DataError):
            raise found
        return found

    def summary(self, mode: Mode) -> Summary:
        """Return the numbers the published evaluation prints.

        Raises:
            DataError: see `judgements`; or the published rules stop at this benchmark.
        """
        return self.scorer.summarise(self.items, self.judgements(mode), mode)

    def percent(self, mode: Mode) -> float:
        """Return the benchmark's one number in percent.

        Most scorers make it of their summary. Where a benchmark's samples all have one length, as the sets of MM-NIAH's
        long variant, the published report knows no number: it is the mean over the fifths of depth that have samples.
        A user's own files of MM-NIAH's form have other lengths than the published eleven: bins without samples are left
        out in either mode.

        Raises:
            DataError: there is none.
        """
        judgements = self.judgements(mode)
        if self.benchmark.one_length:
            if not (needles := self.needles(mode)):
                raise DataError("there are no answers to score")
            return mean_over_depths(needles)
        rules: Mode = "corrected" if self.benchmark.own else mode
        return self.scorer.percent(self.scorer.summarise(self.items, judgements, rules), judgements)

    def published_percent(self, mode: Mode) -> float:
        """Return the benchmark's one number in percent; none where the published report stops, as at long MM-NIAH sets.

        Raises:
            DataError: there is none.
        """
        if not self.items:
            raise DataError("there are no items to score")
        if mode == "reference" and self.benchmark.one_length:
            return self.scorer.percent(self.summary(mode), self.judgements(mode))
        return self.percent(mode)

    def needles(self, mode: Mode) -> tuple[Needle, ...]:
        """Return the samples with length, depth and score where the benchmark hides needles; nothing of others."""
        needle = self.scorer.needle
        if needle is None:
            return ()
        return tuple(
            Needle(*needle(item), float(judgement["score"]))
            for item, judgement in zip(self.items, self.judgements(mode), strict=True)
            if "score" in judgement
        )

    def answered(self, mode: Mode) -> JudgedAnswers:
        """Return the questions that have an answer alone, with their judgements in one mode."""
        kept = [number for number, answer in enumerate(self.answers) if answer is not None and answer.error is None]
        part = JudgedAnswers(
            self.benchmark, [self.questions[number] for number in kept], [self.answers[number] for number in kept]
        )
        part._items = [self.items[number] for number in kept]
        part._judgements[mode] = [self.judgements(mode)[number] for number in kept]
        return part

    @property
    def _pairs(self) -> list[tuple[Question, Answer | None]]:
        return list(zip(self.questions, self.answers, strict=True))
