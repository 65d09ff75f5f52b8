"""Asks a model all questions of a benchmark, on any number of processes, and none that has been answered.

The questions without an answer are shared out among the copies of the model by what they cost; the first rank of each
copy writes the answers (see `answers`). What goes wrong with one question is its answer's `error`, and the run goes on;
the next run asks it again. That includes a prompt that needs more memory than there is, as far as it is known before
ranks exchange anything; beyond that the run ends, and the next one knows what it was asking (see `asking`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.errors import DataError, MemoryShortageError
from megatron_v2pe.evaluate.answers import KILLED, Answer, AnswerLog, Stopped
from megatron_v2pe.evaluate.batching import Ahead, Prepared, batches
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.crash_notes import MOST_ENDS, AskingNote, blameless, ended_runs, forget
from megatron_v2pe.evaluate.load_balance import cost_of, share_out
from megatron_v2pe.evaluate.prompting import Prompter, estimated_cost, shown
from megatron_v2pe.evaluate.words import told, words_of
from megatron_v2pe.generate.generation import Generated, GenerationOptions, check_prompt, generate
from megatron_v2pe.generate.memory import is_out_of_memory
from megatron_v2pe.generate.pretrained import Pretrained
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.stages import agreed
from megatron_v2pe.parallel import topology

Retry = Literal["errors", "all", "none"]
"""Which questions without a proper answer are asked again: those that ended in an error, also those that have ended
their run too often, or none."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class Runner:
    """A model, ready to be asked."""

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

    def run(self, benchmark: Benchmark, questions: Sequence[Question], folder: Path) -> None:
        """Ask what has no answer yet; every rank calls this.

        Args:
            benchmark: whose questions they are.
            questions: all of them, the same on every rank.
            folder: of the benchmark's answers.
        """
        (copy, copies), group = topology.model_copy(), topology.model_copy_group()
        settled, ended = self._state(benchmark, questions, folder)
        todo = [question for question in questions if question.id not in settled]
        most = max(ended.values(), default=0) + 1 if self.retry == "all" else MOST_ENDS
        lethal = [one for one in todo if ended.get(one.id, 0) >= most]
        suspects = [one for one in todo if 0 < ended.get(one.id, 0) < most]
        others = [one for one in todo if one.id not in ended]
        mine = [
            (self._share(benchmark, others, copy, copies), self.batch_size, self.image_workers),
            (self._share(benchmark, suspects, copy, copies), 1, 0),  # alone: what ends a run is to be known by name
        ]
        dist.barrier()  # everyone has read what is there before anyone writes
        log, note = None, None
        if group.rank() == 0:
            log, note = AnswerLog(folder, copy), AskingNote(folder, copy, ended)
        try:
            if log is not None and copy == 0:
                for question in lethal:
                    log.add(_killed(question, ended[question.id]))
            total = sum(len(share) for share, _, _ in mine)
            beyond = 0
            with progress_bar(total=total, desc=benchmark.name, unit="questions", disable=dist.get_rank() > 0) as bar:
                for batch in (one for part in mine for one in self._batches(benchmark, *part, note)):
                    for answer in self._answers(benchmark, batch):
                        beyond += (answer.positions or 0) > self.pretrained.window
                        if log is not None:
                            log.add(answer)
                    bar.update(len(batch))
            if note is not None:
                note.put([])
                self._tell_beyond(benchmark, beyond, total)
        except BaseException as error:
            if note is not None and blameless(error):
                note.put([])
            raise
        finally:
            if log is not None:
                log.close()
        dist.barrier()
        if dist.get_rank() == 0:
            forget(folder)
        dist.barrier()

    def _tell_beyond(self, benchmark: Benchmark, beyond: int, total: int) -> None:
        """Say how many prompts of this copy reached positions the checkpoint was not trained for."""
        if beyond:
            _log.warning(
                "%s: %d of %d prompts reached beyond the %d positions of the checkpoint; they were asked all the same, "
                "as published (--window refuses them)",
                benchmark.name,
                beyond,
                total,
                self.pretrained.window,
            )

    def _state(
        self, benchmark: Benchmark, questions: Sequence[Question], folder: Path
    ) -> tuple[set[str], dict[str, int]]:
        """What rank 0 finds in the folder, on every rank: questions not to be asked, and how often one ended a run.

        Raises:
            DataError: answers are damaged, or belong to other questions of the same ids.
        """
        state: list[tuple[set[str], dict[str, int]]] = [({*()}, {})]
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                log = AnswerLog(folder)
                _check_questions(log, questions, folder)
                state = [(self._settled(benchmark, log), ended_runs(folder))]
            except (DataError, OSError) as error:
                problem = [str(error)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise DataError(problem[0])
        dist.broadcast_object_list(state, src=0)
        return state[0]

    def _settled(self, benchmark: Benchmark, log: AnswerLog) -> set[str]:
        """Questions that are not asked again."""
        errors = {one.id for one in log.answers.values() if one.error is not None}
        killed = {one.id for one in log.answers.values() if one.stopped == KILLED}
        again = {"errors": errors - killed, "all": errors, "none": set[str]()}[self.retry]
        if again:
            _log.info("%s: %d questions that ended in an error are asked again", benchmark.name, len(again))
        return {*log.answers} - again

    def _share(self, benchmark: Benchmark, questions: Sequence[Question], copy: int, copies: int) -> list[Question]:
        """Questions of one copy of the model, the dearest first."""
        most = self.max_num or benchmark.max_tiles or self.tiling.max_num
        tile = self.pretrained.config.tokens_per_tile
        costs = [
            cost_of(*estimated_cost(question, most, _limit(question, benchmark), tile), tile) for question in questions
        ]
        return [questions[number] for number in share_out(costs, copies)[copy]]

    def _batches(
        self, benchmark: Benchmark, questions: Sequence[Question], size: int, workers: int, note: AskingNote | None
    ) -> Iterator[list[Prepared]]:
        """Questions of this copy as batches, with a note of all that is worked on."""
        pretrained, noted = self.pretrained, [""]
        prompter = Prompter(pretrained.config, pretrained.tokenizer, pretrained.policy, self.tiling, self.max_num)
        denominator = pretrained.engine.model.rotary.denominator
        assert pretrained.policy.denominator(pretrained.config.tokens_per_tile) == denominator, "see at_stride"

        def limit(question: Question) -> int:
            return _limit(question, benchmark)

        def encode(question: Question) -> Prompt:
            prompt = prompter.prompt(benchmark, question)
            check_prompt(prompt, denominator, self.window, limit(question), question.id)
            return prompt

        def tell(ids: Sequence[str]) -> None:
            if note is not None and noted != [*ids]:
                noted[:] = ids
                note.put(ids)

        ahead = Ahead(workers, self.tiling.tile_size)
        try:
            yield from batches(questions, limit, size, encode, ahead, pretrained.engine, tell)
        finally:
            ahead.close()

    def _answers(self, benchmark: Benchmark, batch: Sequence[Prepared]) -> list[Answer]:
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
        began = time.perf_counter()
        pretrained = self.pretrained
        longest = _limit(batch[0].question, benchmark)
        denominator = pretrained.engine.model.rotary.denominator

        def encoded() -> list[Prompt]:
            for one in batch:
                if one.problem is not None:
                    raise one.problem
            return [one.prompt for one in batch if one.prompt is not None]

        prompts = agreed(encoded, topology.model_copy_group())
        options = GenerationOptions(longest, min(benchmark.min_new_tokens, longest)).with_stop_ids(
            pretrained.stop_ids()
        )
        names = [one.question.id for one in batch]
        found = generate(pretrained.engine, prompts, options, pretrained.tokenizer.decode, names)
        seconds = (time.perf_counter() - began) / len(batch)
        return [
            _answer(one.question, prompt, answer, seconds, int(prompt.position_ticks[-1]) // denominator + 1)
            for one, prompt, answer in zip(batch, prompts, found, strict=True)
        ]


def _check_questions(log: AnswerLog, questions: Sequence[Question], folder: Path) -> None:
    """Refuse answers to other questions: a file that was edited, or another one of the same name."""
    for question in questions:
        answer = log.answers.get(question.id)
        if answer is None:
            continue
        if (then := words_of(answer.prompt)) != (now := words_of(told(question.turns))):
            raise DataError(
                f"{folder}: the answer to {question.id} belongs to another question: {then[:100]!r} then, "
                f"{now[:100]!r} now. Choose another --out, or remove the folder"
            )


def _limit(question: Question, benchmark: Benchmark) -> int:
    """Most tokens of an answer."""
    return question.max_new_tokens or benchmark.max_new_tokens


def _answer(question: Question, prompt: Prompt, found: Generated, seconds: float, positions: int) -> Answer:
    return Answer(
        id=question.id,
        answer=found.text.strip(),
        prompt=shown(question.turns, prompt),
        num_tokens=len(prompt.input_ids),
        num_tiles=sum(prompt.num_tiles),
        new_tokens=len(found.token_ids),
        seconds=round(seconds, 4),
        stopped="length" if found.finish_reason == "length" else "stop",
        positions=positions,
    )


def _failed(question: Question, problem: str, stopped: Stopped = "error") -> Answer:
    return Answer(question.id, None, told(question.turns), 0, 0, 0, 0.0, stopped, problem[:500])


def _killed(question: Question, times: int) -> Answer:
    problem = (
        f"the run ended {times} times while this question was asked: killed, perhaps for lack of memory; it is not "
        "asked again (--retry all does)"
    )
    return _failed(question, problem, KILLED)
