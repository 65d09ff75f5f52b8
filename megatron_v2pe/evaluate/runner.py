"""Asks a model all questions of a benchmark, on any number of processes, and never twice.

The questions without an answer are shared out among the copies of the model by what they cost; the first rank of each
copy writes the answers (see `answers`). What goes wrong with one question is its answer's `error`, and the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from megatron_v2pe.data.pictures import TilingOptions
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.prompting import Prompter, estimated_cost, shown
from megatron_v2pe.evaluate.share import cost_of, share_out
from megatron_v2pe.generate.generation import Generated, GenerationOptions, check_prompt, generate
from megatron_v2pe.generate.pretrained import Pretrained
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.stages import agreed
from megatron_v2pe.parallel import topology

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")


@dataclass(frozen=True)
class Runner:
    """A model, ready to be asked."""

    pretrained: Pretrained
    tiling: TilingOptions
    batch_size: int = 1
    """Questions answered together; an error of one then costs a second, single try of the others."""

    def run(self, benchmark: Benchmark, questions: Sequence[Question], folder: Path) -> None:
        """Ask what has no answer yet; every rank calls this.

        Args:
            benchmark: whose questions they are.
            questions: all of them, the same on every rank.
            folder: of the benchmark's answers.
        """
        (copy, copies), group = topology.model_copy(), topology.model_copy_group()
        writes = group.rank() == 0
        done: list[set[str]] = [set(AnswerLog(folder).answers) if dist.get_rank() == 0 else set()]
        dist.broadcast_object_list(done, src=0)
        todo = [question for question in questions if question.id not in done[0]]
        most = benchmark.max_tiles or self.tiling.max_num
        costs = [cost_of(*estimated_cost(question, most, _limit(question, benchmark))) for question in todo]
        mine = [todo[number] for number in share_out(costs, copies)[copy]]
        dist.barrier()  # everyone has read what is there before anyone writes
        log = AnswerLog(folder, copy) if writes else None
        try:
            with tqdm(total=len(mine), desc=benchmark.name, unit="question", disable=dist.get_rank() > 0) as bar:
                for batch in _batches(mine, benchmark, self.batch_size):
                    for answer in self._answers(benchmark, batch):
                        if log is not None:
                            log.add(answer)
                    bar.update(len(batch))
        finally:
            if log is not None:
                log.close()
        dist.barrier()

    def _answers(self, benchmark: Benchmark, batch: Sequence[Question]) -> list[Answer]:
        try:
            return self._ask(benchmark, batch)
        except (DataError, MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, DataError | MemoryError) and not _is_out_of_memory(error):
                raise
            if len(batch) > 1:
                return [answer for question in batch for answer in self._answers(benchmark, [question])]
            return [_failed(batch[0], error)]

    def _ask(self, benchmark: Benchmark, batch: Sequence[Question]) -> list[Answer]:
        began = time.perf_counter()
        pretrained = self.pretrained
        prompter = Prompter(pretrained.config, pretrained.tokenizer, pretrained.policy, self.tiling)
        longest = _limit(batch[0], benchmark)

        def encoded() -> list[Prompt]:
            prompts = [prompter.prompt(benchmark, question) for question in batch]
            denominator = pretrained.engine.model.rotary.denominator
            for question, prompt in zip(batch, prompts, strict=True):
                check_prompt(prompt, denominator, pretrained.window, longest, question.id)
            return prompts

        prompts = agreed(encoded, topology.model_copy_group())
        options = GenerationOptions(longest, min(benchmark.min_new_tokens, longest)).with_stop_ids(
            pretrained.stop_ids()
        )
        names = [question.id for question in batch]
        found = generate(pretrained.engine, prompts, options, pretrained.tokenizer.decode, names)
        seconds = (time.perf_counter() - began) / len(batch)
        return [
            _answer(question, prompt, one, seconds) for question, prompt, one in zip(batch, prompts, found, strict=True)
        ]


def _limit(question: Question, benchmark: Benchmark) -> int:
    """Most tokens of an answer."""
    return question.max_new_tokens or benchmark.max_new_tokens


def _batches(questions: Sequence[Question], benchmark: Benchmark, size: int) -> Iterator[list[Question]]:
    """Put questions together whose answers may be equally long, so that no answer depends on its neighbours."""
    by_limit: dict[int, list[Question]] = {}
    for question in questions:
        by_limit.setdefault(_limit(question, benchmark), []).append(question)
    for same in by_limit.values():
        yield from (same[first : first + size] for first in range(0, len(same), size))


def _answer(question: Question, prompt: Prompt, found: Generated, seconds: float) -> Answer:
    return Answer(
        id=question.id,
        answer=found.text.strip(),
        prompt=shown(question.turns, prompt),
        num_tokens=len(prompt.input_ids),
        num_tiles=sum(prompt.num_tiles),
        new_tokens=len(found.token_ids),
        seconds=round(seconds, 4),
        stopped="length" if found.finish_reason == "length" else "stop",
    )


def _failed(question: Question, error: BaseException) -> Answer:
    prompt = "\n".join(f"{role}: {text}" for role, text in question.turns)
    return Answer(question.id, None, prompt, 0, 0, 0, 0.0, "error", f"{type(error).__name__}: {error}"[:500])


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
