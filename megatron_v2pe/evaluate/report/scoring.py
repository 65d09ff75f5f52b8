"""How the raw answers of a run become a score of each benchmark, in both modes, that says how complete it is.

Nothing of a run is changed. Questions are read in the way the run asked them (its own mode), so that a score's mode is
that of the scorer alone. Where a benchmark's data cannot be read, the number is that of the run's `results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog, turns_text, without_images
from megatron_v2pe.evaluate.benchmark import Benchmark, Question, other_than_published
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.judging import JudgedAnswers
from megatron_v2pe.evaluate.report.needle_grids import Needle, grid_of
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.results import RESULTS, Results, read_results
from megatron_v2pe.evaluate.scorers import Judgement, Mode

MODES: tuple[Mode, ...] = ("reference", "corrected")
_MOST_OF_A_QUESTION = 1000
Source = Literal["answers", "results", "server"]


@dataclass(frozen=True)
class Judged:
    """An answer to a question of the user's own."""

    id: str
    question: str
    """The end of its last turn, as it was asked."""
    expected: str
    """The true answer, several separated by ` | `."""
    answer: str | None
    """None: there is none."""
    error: str | None
    score: float
    """0 to 1."""


@dataclass(frozen=True)
class Score:
    """A benchmark of a run in one mode."""

    value: float | None
    """Percent; None where there is no number, `problem` says why."""
    source: Source
    questions: int
    """Questions that were scored."""
    missing: int
    """Questions without an answer."""
    failed: int
    """Questions that ended in an error."""
    limit: int | None = None
    """Only so many of all questions were asked, the first ones unless they are `sampled`."""
    of_all: int | None = None
    """All questions of the data where they could be read."""
    published: int | None = None
    """Questions of the published files where that is stated."""
    stopped: int = 0
    """Answers at which the published evaluation stops; they are left out, in reference mode only."""
    answered_value: float | None = None
    """Percent over the questions that have an answer, where some have none."""
    empty_cells: int = 0
    """Cells of MM-NIAH's 55 of length and depth that have no samples and count as 0; in reference mode only."""
    other_mode: bool = False
    """The number is of the other mode: `results.json` has no other."""
    problem: str | None = None
    """Why there is no number, or why it is not computed from the answers."""
    needles: tuple[Needle, ...] = ()
    """MM-NIAH's judged samples."""
    own: bool = False
    """Whether the questions are the user's own: there are no published ones."""
    judged: tuple[Judged, ...] = ()
    """Own questions one by one."""
    edited: int = 0
    """Questions whose answer was edited after it was written."""
    sampled: bool = False
    """The questions that were asked are a drawn sample of all."""

    @property
    def unchecked(self) -> bool:
        """Return whether nothing tells a part of the benchmark from the whole: its published number is not known."""
        return self.published is None and not self.own and self.questions > 0

    @property
    def incomplete(self) -> bool:
        """Return whether it stands for less than the benchmark."""
        return bool(self.completeness)

    @property
    def completeness(self) -> str:
        """Return how complete it is in words, empty if it is."""
        parts = [f"{self.missing} of {self.questions} without an answer"] if self.missing else []
        parts += [f"{self.failed} of {self.questions} failed"] if self.failed else []
        parts += [f"{self.edited} of {self.questions} answers edited after they were written"] if self.edited else []
        if self.limit is not None:
            which = "a drawn sample of" if self.sampled else "only the first"
            parts.append(f"{which} {self.limit}" + (f" of {self.of_all}" if self.of_all else ""))
        total = self.of_all if self.limit is not None else self.questions
        if total is not None and (other := other_than_published(total, self.published)):
            parts.append(other)
        return ", ".join(parts)


Scores = dict[Mode, dict[str, dict[str, Score]]]
"""Mode -> run -> benchmark."""


def score_runs(
    runs: Sequence[EvaluationRun], root: Path, server: Mapping[tuple[str, str], float], cache: Path = CACHE
) -> Scores:
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
    total = sum(len(run.benchmarks) + len(run.own) for run in runs)
    with progress_bar(total=total, desc="scoring", unit="benchmarks", disable=not runs) as bar:
        for name in names:
            read = Questions(name, root, cache)
            for run in runs:
                if name in run.benchmarks:
                    for mode, score in _score_in_both(run, read, name).items():
                        given = server.get((run.name, name))
                        if given is not None and score.source != "server":
                            raise ConfigError(f"--server-score {run.name}:{name}: it is scored here, not by a server")
                        scores[mode][run.name][name] = score if given is None else _served(score, given)
                    bar.update()
        for file in dict.fromkeys(one.file for run in runs for one in run.own):
            read = Questions(file, root, cache)
            for run in runs:
                for one in (one for one in run.own if one.file == file):
                    for mode, score in _score_in_both(run, read, one.name).items():
                        scores[mode][run.name][one.name] = score
                    bar.update()
    return scores


class Questions:
    """The questions of a benchmark, or of a file of own ones, read when first wanted and kept while runs are scored."""

    def __init__(self, name: str, root: Path, cache: Path = CACHE) -> None:
        """Name a benchmark, or a file by its path, and say below which folder it lies."""
        self.name, self.root, self.cache = name, root, cache
        self._read: dict[Mode, tuple[Benchmark, list[Question] | str]] = {}

    @property
    def place(self) -> str:
        """Return where the questions lie, for messages."""
        return self.name if self.name not in BENCHMARKS else str(self.root)

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


def _score_in_both(run: EvaluationRun, read: Questions, name: str) -> dict[Mode, Score]:
    folder = run.folder / name
    benchmark, questions = read.of(run.mode)
    results = read_results(folder / RESULTS, benchmark)
    if isinstance(questions, str) or not any(folder.glob("answers-*.jsonl")):
        reason = questions if isinstance(questions, str) else "no answers, only results.json"
        return {mode: _from_results(benchmark, results, mode, reason) for mode in MODES}
    log = AnswerLog(folder)
    known = {question.id for question in questions}
    if strange := [key for key in log.answers if key not in known]:
        reason = (
            f"{len(strange)} of {len(log.answers)} answers belong to no question of {read.place}, the first is "
            f"{strange[0]}: are the data of another version?"
        )
        return {mode: _from_results(benchmark, results, mode, reason) for mode in MODES}
    if benchmark.own and (changed := _changed(questions, log)) is not None:
        reason = f"question {changed} of {read.place} is another one than was asked: the file has been edited since"
        return {mode: _from_results(benchmark, results, mode, reason) for mode in MODES}
    limit = _limit(results, len(questions))
    sample = frozenset(() if results is None else results.sample)
    asked = [question for question in questions if question.id in sample] if sample else questions[:limit]
    judged = JudgedAnswers(benchmark, asked, [log.answers.get(question.id) for question in asked])
    edited = len({question.id for question in asked} & {*log.edited})
    return {mode: replace(_score(judged, mode, edited, limit, len(questions)), sampled=bool(sample)) for mode in MODES}


def _changed(questions: Sequence[Question], log: AnswerLog) -> str | None:
    """Return the id of a question whose words are not those that were asked; None where all are."""
    for question in questions:
        answer = log.answers.get(question.id)
        if answer is not None and without_images(answer.prompt) != without_images(turns_text(question.turns)):
            return question.id
    return None


def _limit(results: Results | None, total: int) -> int | None:
    """Return of how many questions a run consists if not of all; files without `limit` tell it by their number."""
    if results is None:
        return None
    limit = results.questions if results.limit == "unstated" else results.limit
    return limit if limit is not None and limit < total else None


def _score(judged: JudgedAnswers, mode: Mode, edited: int, limit: int | None, of_all: int) -> Score:
    benchmark, questions = judged.benchmark, judged.questions
    missing, failed = len(judged.missing), len(judged.failed)
    score = Score(
        None,
        "answers",
        len(questions),
        missing,
        failed,
        limit,
        of_all,
        benchmark.published,
        own=benchmark.own,
        edited=edited,
    )
    if benchmark.scorer is None:
        return replace(score, source="server", problem="a server scores it: --server-score")
    try:
        judgements, needles = judged.judgements(mode), judged.needles(mode)
        score = replace(score, stopped=sum("error" in judgement for judgement in judgements), needles=needles)
        if benchmark.own:
            score = replace(score, judged=tuple(map(_judged, questions, judged.answers, judgements)))
        score = replace(score, value=_value(judged, mode))
        if mode == "reference" and needles and not benchmark.one_length and not benchmark.own:
            score = replace(score, empty_cells=sum(row.count(0) for row in grid_of(needles, mode).counts))
        if missing or failed:
            with suppress(DataError):  # there may be no number
                score = replace(score, answered_value=_value(judged.answered(mode), mode))
    except DataError as error:
        return replace(score, problem=str(error))
    return score


def _judged(question: Question, answer: Answer | None, judgement: Judgement) -> Judged:
    truth = question.facts.get("answers", question.facts.get("answer"))
    options = question.facts.get("options")
    if isinstance(truth, int) and isinstance(options, dict) and 0 <= truth < len(options):
        truth = [*options][truth]  # of MM-NIAH: the model is asked for a letter
    texts = map(str, truth) if isinstance(truth, list) and "answers" in question.facts else [str(truth)]
    asked = next(text for role, text in reversed(question.turns) if role == "human")
    said = (None, None) if answer is None else (answer.answer, answer.error)
    score = float(judgement.get("score", 0.0)) if said[0] is not None else 0.0
    return Judged(question.id, asked[-_MOST_OF_A_QUESTION:], " | ".join(texts), *said, score)


def _value(judged: JudgedAnswers, mode: Mode) -> float:
    """Return the one number papers print, in percent.

    Raises:
        DataError: there is none.
    """
    judgements = judged.judgements(mode)
    if not any("error" not in judgement for judgement in judgements):
        first = judgements[0]["error"] if judgements else "there are no answers"
        raise DataError(f"nothing could be scored: {first}")
    return judged.percent(mode)


def _served(score: Score, percent: float) -> Score:
    return replace(score, value=percent, problem=None)


def _from_results(benchmark: Benchmark, results: Results | None, mode: Mode, reason: str) -> Score:
    source: Source = "server" if benchmark.scorer is None else "results"
    reason = " ".join(reason.split())
    if results is None:
        return Score(None, source, 0, 0, 0, problem=f"no {RESULTS}, and {reason}", own=benchmark.own)
    value = results.score if results.mode == mode or results.other_score is None else results.other_score
    return Score(
        value,
        source,
        results.questions,
        len(results.missing),
        len(results.failed),
        None if results.limit == "unstated" else results.limit,
        published=benchmark.published if results.published is None else results.published,
        other_mode=value is not None and results.mode != mode and results.other_score is None,
        problem=reason,
        own=benchmark.own,
        edited=len(results.edited),
    )
