"""Decode without waiting: steps are launched ahead of what the host has read, tokens are chosen where the logits are.

The host reads the tokens of a step while the card works on the `AHEAD` steps after it: text, stop strings and what is
to be done about an answer that has ended cost the card nothing, and nothing is ever waited for but tokens that are
there already or about to be. What an answer's steps beyond its end have added is dropped, so that answers are those of
the loop that looks at every token before it goes on. A stop is noticed `AHEAD` steps late, some milliseconds an answer;
that is why tokens are read after every step and not once in a while: answers of benchmarks have few tokens.

An ended sequence stays in the batch as one that holds nothing, until half of the batch has ended: the step of another
number of sequences is another graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.generate.arena import ArenaCache
from megatron_v2pe.generate.memory import shortage_as_error
from megatron_v2pe.generate.sampling import Sampling, chosen, marked, points
from megatron_v2pe.generate.session import Session
from megatron_v2pe.generate.static_step import WINDOW, StaticStep

AHEAD = 2
"""Steps in flight while the host reads the one before."""


@dataclass(frozen=True)
class Reading:
    """The tokens of one step."""

    numbers: list[int]
    """Numbers of the sequences, one for each token."""
    logits: Tensor | None
    """Logits the tokens were chosen from, [n, vocab_size], where asked for."""
    tokens: Tensor
    """int64 [n] on the host, there when `event` has come; `sampling.NOT_FINITE` where the logits are no numbers."""
    event: torch.cuda.Event | None

    def get(self) -> list[int]:
        """Return the tokens; waits for them where they are not there yet."""
        if self.event is not None:
            self.event.synchronize()
        return self.tokens.tolist()


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen."""

    sampling: Sampling
    stop_ids: frozenset[int]
    """Tokens that cannot be chosen before `min_new_tokens`."""
    min_new_tokens: int
    max_new_tokens: int
    """Tokens to choose in these steps."""
    chosen_before: int
    """Tokens of each answer that were chosen earlier, and belong to the session's prompts."""
    keep_logits: bool


class StepsAhead:
    """Goes on with the sequences of a session, from the logits of their first new tokens."""

    @torch.inference_mode()
    def __init__(
        self, session: Session, logits: Tensor, choice: Choice, numbers: Sequence[int], names: Sequence[str]
    ) -> None:
        """Choose the first tokens.

        Args:
            session: prefilled, of an engine with static steps.
            logits: what prefill gave.
            choice: how tokens are chosen.
            numbers: of the session's sequences, for readings.
            names: what each sequence's draws are keyed by.
        """
        assert isinstance(session.cache, ArenaCache)
        self._session, self._cache, self._choice = session, session.cache, choice
        self._device = session.engine.device
        self._numbers, self._names = list(numbers), list(names)
        self._ended: set[int] = set()
        self._queue: deque[Reading] = deque()
        self._chosen = 0
        """Tokens of every sequence chosen so far; one fewer have been added."""
        self._window = 0
        """Step whose factors are the first of those made ahead."""
        self._step: StaticStep | None = None
        stops = torch.tensor(sorted(choice.stop_ids), dtype=torch.int64)
        self._stops = to_device(stops, self._device) if choice.stop_ids else stops
        self._draws = self._points([0])
        self._choose(logits, 0)

    @torch.inference_mode()
    def reading(self) -> Reading | None:
        """Launch what is to be ahead; return the oldest tokens not read yet, None where all are.

        Raises:
            MemoryShortageError: the cache has to grow and cannot.
        """
        while self._alive and self._chosen < self._choice.max_new_tokens and len(self._queue) <= AHEAD:
            self._launch()
        return self._queue.popleft() if self._alive and self._queue else None

    @torch.inference_mode()
    def end(self, number: int) -> None:
        """Drop a sequence: its further tokens are ignored."""
        self._ended.add(number)
        if not self._alive or self._step is None:
            return
        if 2 * len(self._alive) <= len(self._numbers):
            self._leave_out()
        else:
            row = self._numbers.index(number)
            self._cache.forget(row)
            self._step.lengths[row].zero_()

    @property
    def _alive(self) -> list[int]:
        return [number for number in self._numbers if number not in self._ended]

    def _launch(self) -> None:
        """Add the tokens chosen last, and choose the next; the host waits for nothing."""
        launched = self._chosen - 1
        if self._cache.full:
            self._leave_out()
            with shortage_as_error():
                self._cache.grow()
            self._step = None
        if self._step is None:
            self._leave_out()
            self._step = self._loaded()
            self._look_ahead(self._step, launched)
        elif launched - self._window == WINDOW:
            self._look_ahead(self._step, launched)
        logits = self._step.run()
        self._cache.extend([1] * len(self._numbers))
        self._choose(logits, launched - self._window)

    def _loaded(self) -> StaticStep:
        """Return the step for so many sequences, with the state of the batch in its buffers."""
        step = self._session.engine.step(len(self._numbers))
        step.tokens.copy_(self._tokens)
        for buffer, values in ((step.starts, self._cache.starts), (step.lengths, self._cache.lengths)):
            buffer.copy_(to_device(torch.tensor(values), self._device))
        return step

    def _look_ahead(self, step: StaticStep, launched: int) -> None:
        """Make rotary factors, and draws, of the steps from number `launched` on."""
        self._window = launched
        cos, signed_sin = self._session.factors(launched, WINDOW)
        step.cos.copy_(cos.transpose(0, 1))
        step.signed_sin.copy_(signed_sin.transpose(0, 1))
        step.at.zero_()
        self._draws = self._points(range(launched + 1, launched + 1 + WINDOW))

    def _points(self, tokens: Sequence[int]) -> Tensor | None:
        """Return draws float64 [sequences, tokens] for tokens of these steps; None where nothing is drawn."""
        sampling = self._choice.sampling
        if sampling.temperature == 0:
            return None
        names = [name for name in self._names for _ in tokens]
        numbers = [self._choice.chosen_before + token for token in tokens]
        draws = points(sampling, names, numbers * len(self._names))
        return to_device(draws.view(len(self._names), len(tokens)), self._device)

    def _leave_out(self) -> None:
        """Go on with the sequences that have not ended."""
        rows = [row for row, number in enumerate(self._numbers) if number not in self._ended]
        if len(rows) == len(self._numbers):
            return
        self._tokens = self._tokens.index_select(0, to_device(torch.tensor(rows), self._device))
        self._session.keep(rows)
        self._numbers = [self._numbers[row] for row in rows]
        self._names = [self._names[row] for row in rows]
        self._step = None

    def _choose(self, logits: Tensor, column: int) -> None:
        """Choose the next tokens, and have them brought into the next step and to the host.

        Args:
            logits: [sequences, vocab_size].
            column: of the draws.
        """
        choice, allowed = self._choice, logits
        if choice.chosen_before + self._chosen < choice.min_new_tokens and choice.stop_ids:
            allowed = logits.index_fill(1, self._stops, -torch.inf)
        self._tokens = chosen(allowed, choice.sampling, None if self._draws is None else self._draws[:, column])
        self._chosen += 1
        if self._step is not None:
            self._step.tokens.copy_(self._tokens)
        choice_marked, event = marked(self._tokens, logits), None  # the step goes on with tokens that exist
        here = choice_marked
        if choice_marked.is_cuda:
            here = torch.empty(choice_marked.shape, dtype=torch.int64, pin_memory=True)
            here.copy_(choice_marked, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        kept = logits.clone() if choice.keep_logits else None
        self._queue.append(Reading(list(self._numbers), kept, here, event))
