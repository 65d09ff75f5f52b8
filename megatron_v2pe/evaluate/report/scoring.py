"""From the raw answers of a run to a score of each benchmark, in both modes, told with how complete it is.

Nothing of a run is changed. Questions are read in the way the run asked them (its own mode), so that a score's mode is
that of the scorer alone. Where a benchmark's data cannot be read, the number is that of the run's `results.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.benchmarks import mm_niah_long
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.registry import BENCHMARKS, create
from megatron_v2pe.evaluate.report.needles import Needle, grid_of, mean_over_depths
from megatron_v2pe.evaluate.report.runs import Run
from megatron_v2pe.evaluate.results import RESULTS, Results, read_results
from megatron_v2pe.evaluate.scorers import Item, Judgement, Mode, Scorer, scorer_of
from megatron_v2pe.evaluate.scorers.mm_niah_report import depth_of
from megatron_v2pe.progress import progress_bar

MODES: tuple[Mode, ...] = ("reference", "corrected")
Source = Literal["answers", "results", "server"]


@dataclass(frozen=True)
class Score:
    """A benchmark of a run in one mode."""

    value: float | None
    """Percent; None where there is no number, `problem` says why."""
    source: Source
    questions: int
    """That were scored."""
    missing: int
    """Of them without an answer."""
    failed: int
    """Of them that ended in an error."""
    limit: int | None = None
    """Only the first so many of all questions were asked."""
    of_all: int | None = None
    """All questions of the data where they could be read."""
    published: int | None = None
    """Questions of the published files where that is stated."""
    stopped: int = 0
    """Answers at which the published evaluation stops; they are left out, in reference mode only."""
    answered_value: float | None = None
    """Percent over the questions that have an answer, where some have none."""
    empty_cells: int = 0
    """Of MM-NIAH's 55 cells of length and depth those without samples, which count as 0; in reference mode only."""
    other_mode: bool = False
    """The number is of the other mode: `results.json` has no other."""
    problem: str | None = None
    """Why there is no number, or why it is not computed from the answers."""
    needles: tuple[Needle, ...] = ()
    """MM-NIAH's judged samples."""

    @property
    def incomplete(self) -> bool:
        """Return whether it stands for less than the benchmark."""
        return bool(self.completeness)

    @property
    def completeness(self) -> str:
        """Return how complete it is in words, empty if it is."""
        parts = [f"{self.missing} of {self.questions} without an answer"] if self.missing else []
        parts += [f"{self.failed} of {self.questions} failed"] if self.failed else []
        if self.limit is not None:
            parts.append(f"only the first {self.limit}" + (f" of {self.of_all}" if self.of_all else ""))
        total = self.of_all if self.limit is not None else self.questions
        if self.published is not None and total is not None and total != self.published:
            parts.append(f"data of {total} questions, {self.published} are published")
        return ", ".join(parts)


Scores = dict[Mode, dict[str, dict[str, Score]]]
"""Mode -> run -> benchmark."""


def score_runs(runs: Sequence[Run], root: Path, server: Mapping[tuple[str, str], float], cache: Path = CACHE) -> Scores:
    """Score every benchmark of every run in both modes, a benchmark at a time: its questions are read once.

    Args:
        runs: whose answers.
        root: folder of the benchmarks' data.
        server: (run, benchmark) -> percent, given by a server.
        cache: folder for images that stand inside of other files.

    Raises:
        ConfigError: a server's score of a benchmark that is scored here.
        DataError: a file of answers or results is damaged.
    """
    scores: Scores = {mode: {run.name: {} for run in runs} for mode in MODES}
    names = [name for name in BENCHMARKS if any(name in run.benchmarks for run in runs)]
    total = sum(len(run.benchmarks) for run in runs)
    with progress_bar(total=total, desc="scoring", unit="benchmarks", disable=not runs) as bar:
        for name in names:
            read = _Questions(name, root, cache)
            for run in runs:
                if name in run.benchmarks:
                    for mode, score in _score_in_both(run, read).items():
                        given = server.get((run.name, name))
                        if given is not None and score.source != "server":
                            raise ConfigError(f"--server-score {run.name}:{name}: it is scored here, not by a server")
                        scores[mode][run.name][name] = score if given is None else _served(score, given)
                    bar.update()
    return scores


class _Questions:
    """The questions of a benchmark, read when first wanted and kept while runs are scored."""

    def __init__(self, name: str, root: Path, cache: Path) -> None:
        self.name, self.root, self.cache = name, root, cache
        self._read: dict[Mode, tuple[Benchmark, list[Question] | str]] = {}

    def of(self, mode: Mode) -> tuple[Benchmark, list[Question] | str]:
        """Return benchmark and questions as asked in a mode, or why they cannot be read."""
        if mode not in self._read:
            benchmark = create(self.name, mode, self.cache)
            try:
                # Images are not looked at: a benchmark is scored where its annotations are.
                self._read[mode] = benchmark, list(benchmark.questions(self.root))
            except (DataError, OSError) as error:
                self._read[mode] = benchmark, str(error)
        return self._read[mode]


def _score_in_both(run: Run, read: _Questions) -> dict[Mode, Score]:
    folder = run.folder / read.name
    benchmark, questions = read.of(run.mode)
    results = read_results(folder / RESULTS, benchmark)
    if isinstance(questions, str) or not any(folder.glob("answers-*.jsonl")):
        reason = questions if isinstance(questions, str) else "no answers, only results.json"
        return {mode: _from_results(benchmark, results, mode, reason) for mode in MODES}
    log = AnswerLog(folder)
    known = {question.id for question in questions}
    if strange := [key for key in log.answers if key not in known]:
        reason = (
            f"{len(strange)} of {len(log.answers)} answers belong to no question of {read.root}, the first is "
            f"{strange[0]}: are the data of another version?"
        )
        return {mode: _from_results(benchmark, results, mode, reason) for mode in MODES}
    limit = _limit(results, len(questions))
    asked = questions[:limit]
    return {mode: _score(benchmark, asked, log, mode, limit, len(questions)) for mode in MODES}


def _limit(results: Results | None, total: int) -> int | None:
    """Return of how many questions a run consists if not of all; files without `limit` tell it by their number."""
    if results is None:
        return None
    limit = results.questions if results.limit == "unstated" else results.limit
    return limit if limit is not None and limit < total else None


def _score(
    benchmark: Benchmark, questions: Sequence[Question], log: AnswerLog, mode: Mode, limit: int | None, of_all: int
) -> Score:
    answers = [log.answers.get(question.id) for question in questions]
    missing = sum(answer is None for answer in answers)
    failed = sum(answer is not None and answer.error is not None for answer in answers)
    score = Score(None, "answers", len(questions), missing, failed, limit, of_all, benchmark.published)
    if benchmark.scorer is None:
        return replace(score, source="server", problem="a server scores it: --server-score")
    scorer = scorer_of(benchmark.scorer)
    try:
        items = [benchmark.item(question, _text(answer)) for question, answer in zip(questions, answers, strict=True)]
        judgements = [scorer.judge(item, mode) for item in items]
        needles = _needles(scorer, items, judgements)
        score = replace(score, stopped=sum("error" in judgement for judgement in judgements), needles=needles)
        score = replace(score, value=_value(benchmark, scorer, items, judgements, mode))
        if mode == "reference" and needles and not _is_long(benchmark):
            score = replace(score, empty_cells=sum(row.count(0) for row in grid_of(needles, mode).counts))
        if missing or failed:
            kept = [number for number, answer in enumerate(answers) if answer is not None and answer.error is None]
            known = [items[number] for number in kept], [judgements[number] for number in kept]
            with _no_number():
                score = replace(score, answered_value=_value(benchmark, scorer, *known, mode))
    except DataError as error:
        return replace(score, problem=str(error))
    return score


@contextmanager
def _no_number() -> Iterator[None]:
    """Pass over a number that does not exist."""
    try:
        yield
    except DataError:
        return


def _value(
    benchmark: Benchmark, scorer: Scorer, items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode
) -> float:
    """Return the one number papers print, in percent.

    Raises:
        DataError: there is none.
    """
    if not any("error" not in judgement for judgement in judgements):
        first = judgements[0]["error"] if judgements else "there are no answers"
        raise DataError(f"nothing could be scored: {first}")
    if _is_long(benchmark):  # the published report stops at these; a set is one length
        return mean_over_depths(_needles(scorer, items, judgements))
    return scorer.percent(scorer.summarise(items, judgements, mode), judgements)


def _is_long(benchmark: Benchmark) -> bool:
    return benchmark.name in mm_niah_long.BENCHMARKS


def _needles(scorer: Scorer, items: Sequence[Item], judgements: Sequence[Judgement]) -> tuple[Needle, ...]:
    if scorer.name != "mm_niah":
        return ()
    return tuple(
        Needle(float(item["context_length"]), depth_of(item), float(judgement["score"]))
        for item, judgement in zip(items, judgements, strict=True)
        if "score" in judgement
    )


def _text(answer: Answer | None) -> str:
    return "" if answer is None or answer.answer is None else answer.answer


def _served(score: Score, percent: float) -> Score:
    return replace(score, value=percent, problem=None)


def _from_results(benchmark: Benchmark, results: Results | None, mode: Mode, reason: str) -> Score:
    source: Source = "server" if benchmark.scorer is None else "results"
    reason = " ".join(reason.split())
    if results is None:
        return Score(None, source, 0, 0, 0, problem=f"no {RESULTS}, and {reason}")
    return Score(
        results.score,
        source,
        results.questions,
        len(results.missing),
        len(results.failed),
        None if results.limit == "unstated" else results.limit,
        published=benchmark.published if results.published is None else results.published,
        other_mode=results.score is not None and results.mode != mode,
        problem=reason,
    )
