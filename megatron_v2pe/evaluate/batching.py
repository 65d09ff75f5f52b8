"""Which copy of the model answers which questions, and which of them it asks together.

First questions are shared among the copies by what they cost, not by how many they are (`share_out`). Then each copy
forms batches of questions of like length, a window at a time. How long a prompt is, is known when the headers of its
images are read; its tiles are guessed before that (`prompting.estimated_size`). So a copy encodes its questions, the
dearest first, a window at a time, and batches them by length inside of the window: neighbours are alike, and no answer
is far from where its question stood. A question that cannot be encoded is alone, and costs no other a second try.

Where a card does the work, threads encode the next window and read the images of the next batch while it answers
(`Ahead`). On the CPU threads would take the cores from the answers, and nothing is done ahead.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Question
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.generation import in_order
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.tiles import ImageTiles, TileReader
from megatron_v2pe.parallel import topology

WINDOW = 4
"""Batches formed together."""
AHEAD_BYTES = 256 << 20
"""Bytes of tiles that are read and not encoded yet: 446 tiles of 448 x 448."""
MOST_WORKERS = 8
"""Threads by default; a few keep a card busy."""


@dataclass(frozen=True)
class Prepared:
    """A question, encoded, or what is wrong with it."""

    question: Question
    prompt: Prompt | None
    problem: DataError | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt; -1 where there is none."""
        return -1 if self.prompt is None else len(self.prompt.input_ids)


def share_out(costs: Sequence[float], replicas: int) -> list[list[int]]:
    """Deal questions out, the dearest first, each to the replica with the least so far.

    Args:
        costs: of each question, in any unit.
        replicas: copies of the model that work side by side.

    Returns:
        Of each replica the questions it answers, dearest first; ties by number. No replica carries more than 4/3 of
        what the best deal would give the busiest (Graham, 1969).
    """
    shares: list[list[int]] = [[] for _ in range(replicas)]
    loads = [(0.0, replica) for replica in range(replicas)]
    for question in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        load, replica = heapq.heappop(loads)
        shares[replica].append(question)
        heapq.heappush(loads, (load + costs[question], replica))
    return shares


def cost_of(prompt_tokens: int, tiles: int, new_tokens: int, tokens_per_tile: int) -> float:
    """Estimate what a question costs, in prompt tokens.

    A tile's encoding weighs as much as its own tokens again, an answer's token as four of the prompt, and attention
    grows with the square of the prompt.
    """
    return prompt_tokens + float(tokens_per_tile) * tiles + 4.0 * new_tokens + prompt_tokens**2 / 65536


def default_workers(device: torch.device) -> int:
    """Return how many threads read images ahead: a process's share of the cores on CUDA, none on the CPU."""
    if device.type != "cuda":
        return 0
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // max(torch.cuda.device_count(), 1) - 1))


class Ahead:
    """Threads that prepare what is asked next."""

    def __init__(self, workers: int, tile_size: int) -> None:
        """Start no thread yet; with 0 workers nothing is done ahead."""
        self.workers = workers
        self._images = TileReader(workers, max(1, AHEAD_BYTES // (3 * tile_size**2)))
        self._texts = ThreadPoolExecutor(1, "prompts") if workers else None
        self._started: list[ImageTiles] = []

    def encode(self, action: Callable[[], list[Prepared]]) -> Callable[[], list[Prepared]]:
        """Begin to encode a window; the result is called for."""
        if self._texts is None:
            return action
        future: Future[list[Prepared]] = self._texts.submit(action)
        return future.result

    def read(self, batch: Sequence[Prepared], engine: Engine) -> None:
        """Begin to read the images this rank will encode of a batch."""
        prompts = [one.prompt for one in batch if one.prompt is not None]
        if self._texts is None or not engine.stages.first or len(prompts) < len(batch):
            return
        for part in engine.own_tiles([prompts[number] for number in in_order(prompts)]):
            if isinstance(part, ImageTiles):
                self._images.start(part)

    def forget(self, batch: Sequence[Prepared]) -> None:
        """Give up what was read of a batch and not used."""
        for one in batch:
            if one.prompt is not None and isinstance(one.prompt.tiles, ImageTiles):
                one.prompt.tiles.forget_ahead()

    def close(self) -> None:
        """End the threads."""
        self._images.close()
        if self._texts is not None:
            self._texts.shutdown(cancel_futures=True)


def batches(
    questions: Sequence[Question],
    limit: Callable[[Question], int],
    size: int,
    encode: Callable[[Question], Prompt],
    ahead: Ahead,
    engine: Engine,
    note: Callable[[Sequence[str]], None],
) -> Iterator[list[Prepared]]:
    """Form batches; every rank of a copy of the model gets the same.

    Args:
        questions: of this copy, the dearest first.
        limit: most tokens of a question's answer: those asked together have the same.
        size: most questions of a batch.
        encode: makes a prompt of a question; raises DataError where it cannot be.
        ahead: prepares what comes next.
        engine: says whose tiles are whose.
        note: takes the ids of all questions that are worked on, here or ahead, before anything is done about them.
    """

    def encoded(window: Sequence[Question]) -> list[Prepared]:
        return [_prepared(question, encode) for question in window]

    windows = deque(windowed(questions, limit, size * WINDOW if size > 1 else 1))
    formed: deque[list[Prepared]] = deque()
    begun: deque[tuple[list[Question], Callable[[], list[Prepared]]]] = deque()
    ready = 1 + (ahead.workers > 0)
    reading = 0

    def tell() -> None:
        waiting = [question.id for window, _ in begun for question in window]
        note([*(one.question.id for batch in formed for one in batch), *waiting])

    def begin() -> None:
        if windows and not begun:
            window = windows.popleft()
            begun.append((window, lambda: encoded(window)))
            tell()
            begun[0] = (window, ahead.encode(begun[0][1]))

    while True:
        while len(formed) < ready and (begun or windows):
            begin()
            formed.extend(by_length(begun[0][1](), size))
            begun.popleft()
        if not formed:
            return
        if ahead.workers:
            begin()
        while reading < min(ready, len(formed)):
            ahead.read(formed[reading], engine)
            reading += 1
        if ahead.workers:
            tell()
        else:
            note([one.question.id for one in formed[0]])
        batch = formed.popleft()
        reading -= 1
        yield batch
        ahead.forget(batch)


def windowed(questions: Sequence[Question], limit: Callable[[Question], int], size: int) -> Iterator[list[Question]]:
    """Put questions together whose answers may be equally long, so that no answer depends on its neighbours."""
    by_limit: dict[int, list[Question]] = {}
    for question in questions:
        by_limit.setdefault(limit(question), []).append(question)
    for same in by_limit.values():
        yield from (same[first : first + size] for first in range(0, len(same), size))


def by_length(window: Sequence[Prepared], size: int) -> list[list[Prepared]]:
    """Form the batches of a window: the longest prompts first, those that are none alone at its end."""
    lengths = _agreed([one.length for one in window])
    order = sorted(range(len(window)), key=lambda number: -lengths[number])
    good = [window[number] for number in order if lengths[number] >= 0]
    bad = [[window[number]] for number in order if lengths[number] < 0]
    return [*(good[first : first + size] for first in range(0, len(good), size)), *bad]


def _prepared(question: Question, encode: Callable[[Question], Prompt]) -> Prepared:
    try:
        return Prepared(question, encode(question))
    except DataError as error:
        return Prepared(question, None, error)


def _agreed(lengths: list[int]) -> list[int]:
    """What the first rank of the copy has found, on all of them: batches are the same, whatever a rank can read."""
    group = topology.model_copy_group()
    if group.size() == 1 or len(lengths) == 1:
        return lengths
    box = [lengths]
    dist.broadcast_object_list(box, src=dist.get_process_group_ranks(group)[0], group=group)
    return box[0]
