"""Asks a model all questions of a benchmark that have no answer yet, on any number of processes.

Questions are shared among the copies of the model by what they cost; the first rank of each copy writes the answers
(`answers`). What goes wrong with one question is its answer's `error`: the run goes on, and the next run asks it again.
That includes a prompt that needs more memory than there is, as far as a process knows it before ranks exchange
anything; beyond that the run ends, and the next one finds in a note what it was asking (`crash_notes`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch.distributed as dist

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.device.rank_errors import raise_on_all_ranks, share_from_first_rank
from megatron_v2pe.errors import DataError, MemoryShortageError
from megatron_v2pe.evaluate.answers import KILLED, Answer, AnswerLog, Stopped, turns_text, without_images
from megatron_v2pe.evaluate.batching import Ahead, Prepared, batches, cost_of, share_out
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.crash_notes import MOST_ENDS, AskingNote, ended_runs, is_clean_exit, remove_notes
from megatron_v2pe.evaluate.prompting import Prompter, estimated_size, prompt_text
from megatron_v2pe.generate.generation import Generated, GenerationOptions, check_prompt, generate
from megatron_v2pe.generate.memory import is_out_of_memory
from megatron_v2pe.generate.pretrained import Pretrained
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.parallel import topology

Retry = Literal["errors", "all", "none"]
"""Which questions without a proper answer are asked again: those that ended in an error, also those that have ended
their run too often, or none."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Todo:
    """The questions that have no answer yet, by how they are asked."""

    together: list[Question]
    """No run has ended over them: they are asked first, in batches."""
    retry_alone: list[Question]
    """A run has ended while they were asked: they come last, one by one, so that the culprit is known by name."""
    given_up: list[Question]
    """They have ended too many runs: they are recorded as failed."""
    ended: Mapping[str, int]
    """Id of a question -> runs that ended while it was asked."""


@dataclass(frozen=True)
class Runner:
    """A loaded model with all that is needed to ask it the questions of benchmarks."""

    pretrained: Pretrained
    tiling: TilingOptions
    batch_size: int = 1
    """Most questions answered together; fewer where they do not fit the memory or one of them is an error."""
    retry: Retry = "errors"
    max_num: int | None = None
    """Most tiles of an image where the user says so, in place of what each benchmark says."""
    window: int | None = None
    """Positions prompt and answer may reach; None: any. The published evaluations ask beyond what was trained for."""
    image_workers: int = 0
    """Threads that prepare the next questions meanwhile, see `batching`."""
    enough: Callable[[], bool] | None = None
    """Asked before each batch; where it says so, none is begun any more, and what is left has no answer."""

    def run(self, benchmark: Benchmark, questions: Sequence[Question], folder: Path) -> None:
        """Ask the questions that have no answer yet; every rank calls this.

            all questions, sorted by what the folder holds
              answered, or failed and not retried      left alone
              given up: they ended two runs            recorded as failed
              asked together: they ended no run        shared among copies, in batches     } answers are written, with
              retried alone: they ended one run        shared among copies, one by one     } a note of what is asked

        Args:
            benchmark: the benchmark the questions belong to.
            questions: all of its questions, the same on every rank.
            folder: the folder of the benchmark's answers.

        Raises:
            DataError: the folder's answers are damaged, or belong to other questions.
        """
        settled, ended = share_from_first_rank(lambda: self.look(benchmark, questions, folder))
        dist.barrier()  # every rank knows what is there before any rank writes
        self.ask_share(benchmark, questions, settled, ended, folder)
        dist.barrier()  # every copy is done before the notes go
        if dist.get_rank() == 0:
            remove_notes(folder)
        dist.barrier()

    def ask_share(
        self,
        benchmark: Benchmark,
        questions: Sequence[Question],
        settled: set[str],
        ended: Mapping[str, int],
        folder: Path,
    ) -> None:
        """Ask this copy's share of the questions; it exchanges nothing with other copies of the model.

        Args:
            benchmark: the benchmark the questions belong to.
            questions: all of its questions, the same on every rank.
            settled: see `look`.
            ended: see `look`.
            folder: the folder of the benchmark's answers.
        """
        todo = self._todo(questions, settled, ended)
        copy, _ = topology.model_copy()
        writes = topology.model_copy_group().rank() == 0
        with _Records(folder, copy, todo.ended, writes) as records:
            if copy == 0:
                for question in todo.given_up:
                    records.add(_given_up(question, todo.ended[question.id]))
            together, alone = self._share(benchmark, todo.together), self._share(benchmark, todo.retry_alone)
            total = len(together) + len(alone)
            beyond = 0
            with progress_bar(total=total, desc=benchmark.name, unit="questions", disable=dist.get_rank() > 0) as bar:
                for batch in self._batches(benchmark, together, alone, records):
                    if self._is_enough():
                        break
                    answers = self._answers(benchmark, batch)
                    for answer in answers:
                        records.add(answer)
                    beyond += sum((answer.positions or 0) > self.pretrained.window for answer in answers)
                    bar.update(len(batch))
        if writes:
            self._warn_beyond(benchmark, beyond, total)

    def _is_enough(self) -> bool:
        """Tell whether no further batch is to be begun, as the first rank of the copy sees it."""
        if self.enough is None:
            return False
        found = [self.enough()]
        if (group := topology.model_copy_group()).size() > 1:
            dist.broadcast_object_list(found, src=dist.get_process_group_ranks(group)[0], group=group)
        return found[0]

    def look(
        self, benchmark: Benchmark, questions: Sequence[Question], folder: Path
    ) -> tuple[set[str], dict[str, int]]:
        """Return which questions the folder settles, by id, and how many runs have ended over each of the others.

        Args:
            benchmark: the benchmark the questions belong to.
            questions: all of its questions.
            folder: the folder of the benchmark's answers.

        Raises:
            DataError: answers are damaged, or belong to other questions of the same ids.
        """
        try:
            log = AnswerLog(folder)
            _check_questions(log, questions, folder)
            return self._settled(benchmark, log), ended_runs(folder)
        except OSError as error:
            raise DataError(str(error)) from error

    def _todo(self, questions: Sequence[Question], settled: set[str], ended: Mapping[str, int]) -> _Todo:
        most = max(ended.values(), default=0) + 1 if self.retry == "all" else MOST_ENDS
        todo = [question for question in questions if question.id not in settled]
        return _Todo(
            together=[question for question in todo if question.id not in ended],
            retry_alone=[question for question in todo if 0 < ended.get(question.id, 0) < most],
            given_up=[question for question in todo if ended.get(question.id, 0) >= most],
            ended=ended,
        )

    def _settled(self, benchmark: Benchmark, log: AnswerLog) -> set[str]:
        """Return the ids of the questions that are not asked again."""
        errors = {one.id for one in log.answers.values() if one.error is not None}
        killed = {one.id for one in log.answers.values() if one.stopped == KILLED}
        again = {"errors": errors - killed, "all": errors, "none": set[str]()}[self.retry]
        if again:
            _log.info("%s: %d questions that ended in an error are asked again", benchmark.name, len(again))
        return {*log.answers} - again

    def _share(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Question]:
        """Return the questions of this copy of the model, the dearest first."""
        copy, copies = topology.model_copy()
        most = self.max_num or benchmark.max_tiles or self.tiling.max_num
        tile = self.pretrained.config.tokens_per_tile
        costs = [
            cost_of(*estimated_size(question, most, _limit(question, benchmark), tile), tile) for question in questions
        ]
        return [questions[number] for number in share_out(costs, copies)[copy]]

    def _batches(
        self, benchmark: Benchmark, together: Sequence[Question], alone: Sequence[Question], records: _Records
    ) -> Iterator[list[Prepared]]:
        """Yield this copy's questions as batches, with a note of all that are worked on."""
        pretrained = self.pretrained
        prompter = Prompter(pretrained.config, pretrained.tokenizer, pretrained.policy, self.tiling, self.max_num)
        denominator = pretrained.engine.model.rotary.denominator
        assert pretrained.policy.denominator(pretrained.config.tokens_per_tile) == denominator, "see at_stride"

        def limit(question: Question) -> int:
            return _limit(question, benchmark)

        def encode(question: Question) -> Prompt:
            prompt = prompter.prompt(benchmark, question)
            check_prompt(prompt, self.window, limit(question), question.id)
            return prompt

        for questions, size, workers in ((together, self.batch_size, self.image_workers), (alone, 1, 0)):
            ahead = Ahead(workers, self.tiling.tile_size)
            try:
                yield from batches(questions, limit, size, encode, ahead, pretrained.engine, records.asking)
            finally:
                ahead.close()

    def _answers(self, benchmark: Benchmark, batch: Sequence[Prepared]) -> list[Answer]:
        """Ask a batch; where it fails for a reason a question can have, ask its halves, down to the one that fails."""
        try:
            return self._ask(benchmark, batch)
        except (DataError, MemoryShortageError) as error:  # the same kind on every rank of the copy
            problem = f"{type(error).__name__}: {error}"
        except (MemoryError, RuntimeError) as error:
            # Other ranks of the copy may be waiting for this one anywhere: only a rank alone can go on.
            if topology.model_copy_group().size() > 1 or not is_out_of_memory(error):
                raise
            problem = f"{type(error).__name__}: {error}"
        # Out of the handlers nothing holds on to what the failed attempt had allocated.
        if len(batch) > 1:
            half = len(batch) // 2
            return [*self._answers(benchmark, batch[:half]), *self._answers(benchmark, batch[half:])]
        return [_failed(batch[0].question, problem)]

    def _ask(self, benchmark: Benchmark, batch: Sequence[Prepared]) -> list[Answer]:
        """Ask a batch and return its answers.

        Raises:
            DataError: a question could not be encoded, or an image cannot be read.
            MemoryShortageError: the batch does not fit the memory.
        """
        began = time.perf_counter()
        pretrained = self.pretrained
        longest = _limit(batch[0].question, benchmark)

        def encoded() -> list[Prompt]:
            for one in batch:
                if one.problem is not None:
                    raise one.problem
            return [one.prompt for one in batch if one.prompt is not None]

        prompts = raise_on_all_ranks(encoded, topology.model_copy_group())
        options = GenerationOptions(longest, min(benchmark.min_new_tokens, longest)).with_stop_ids(
            pretrained.stop_ids()
        )
        names = [one.question.id for one in batch]
        found = generate(pretrained.engine, prompts, options, pretrained.tokenizer.decode, names)
        seconds = (time.perf_counter() - began) / len(batch)
        return [
            _answer(one.question, prompt, answer, seconds, prompt.position_ticks.reach)
            for one, prompt, answer in zip(batch, prompts, found, strict=True)
        ]

    def _warn_beyond(self, benchmark: Benchmark, beyond: int, total: int) -> None:
        """Warn of prompts of this copy that reached positions the checkpoint was not trained for."""
        if beyond:
            _log.warning(
                "%s: %d of %d prompts reached beyond the %d positions of the checkpoint; they were asked all the same, "
                "as published (--window refuses them)",
                benchmark.name,
                beyond,
                total,
                self.pretrained.window,
            )


class _Records:
    """What the first rank of a copy writes while it asks: answers, and a note of what is being asked; others nothing.

    A note that is left behind counts against its questions. It stays where the block ends in an error that a question
    may have caused, and is emptied otherwise.
    """

    def __init__(self, folder: Path, copy: int, ended: Mapping[str, int], writes: bool) -> None:
        """Open the files of this copy in the benchmark's folder, if this rank writes."""
        self._log = AnswerLog(folder, copy) if writes else None
        self._note = AskingNote(folder, copy, ended) if writes else None
        self._asking: list[str] = []

    def __enter__(self) -> _Records:
        """Return the records themselves."""
        return self

    def add(self, answer: Answer) -> None:
        """Write an answer; it is on the disk when this returns."""
        if self._log is not None:
            self._log.add(answer)

    def asking(self, ids: Sequence[str]) -> None:
        """Note the ids of the questions that are worked on from now on."""
        if self._note is not None and self._asking != [*ids]:
            self._asking = [*ids]
            self._note.put(ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Empty the note unless a question may have caused the error, and close the file of answers."""
        try:
            if self._note is not None and (error is None or is_clean_exit(error)):
                self._note.put([])
        finally:
            if self._log is not None:
                self._log.close()


def _check_questions(log: AnswerLog, questions: Sequence[Question], folder: Path) -> None:
    """Refuse answers to other questions: a file that was edited, or another one of the same name."""
    for question in questions:
        answer = log.answers.get(question.id)
        if answer is None:
            continue
        then, now = without_images(answer.prompt), without_images(turns_text(question.turns))
        if then != now:
            raise DataError(
                f"{folder}: the answer to {question.id} belongs to another question: {then[:100]!r} then, "
                f"{now[:100]!r} now. Choose another --out, or remove the folder"
            )


def _limit(question: Question, benchmark: Benchmark) -> int:
    """Return the most tokens an answer may have."""
    return question.max_new_tokens or benchmark.max_new_tokens


def _answer(question: Question, prompt: Prompt, found: Generated, seconds: float, positions: int) -> Answer:
    return Answer(
        id=question.id,
        answer=found.text.strip(),
        prompt=prompt_text(question.turns, prompt),
        num_tokens=len(prompt.input_ids),
        num_tiles=sum(prompt.num_tiles),
        new_tokens=len(found.token_ids),
        seconds=round(seconds, 4),
        stopped="length" if found.finish_reason == "length" else "stop",
        positions=positions,
    )


def _failed(question: Question, problem: str, stopped: Stopped = "error") -> Answer:
    return Answer(question.id, None, turns_text(question.turns), 0, 0, 0, 0.0, stopped, problem[:500])


def _given_up(question: Question, times: int) -> Answer:
    problem = (
        f"the run ended {times} times while this question was asked: killed, perhaps for lack of memory; it is not "
        "asked again (--retry all does)"
    )
    return _failed(question, problem, KILLED)
