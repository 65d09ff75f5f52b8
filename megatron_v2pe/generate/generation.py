"""Answers to a batch of prompts: choose, add, stop, one token per sequence and step, until every answer has ended.

Every rank of a copy of the model calls `generate` with the same prompts and gets the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from megatron_v2pe.device import watchdog
from megatron_v2pe.errors import ConfigError, DataError, MemoryShortageError, NonFiniteError
from megatron_v2pe.generate.diagnosis import explain
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.kv_cache import CHUNK
from megatron_v2pe.generate.memory import shortage_as_error
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.sampling import NOT_FINITE, Sampling, choose
from megatron_v2pe.generate.session import Session
from megatron_v2pe.generate.steps_ahead import Choice, StepsAhead
from megatron_v2pe.generate.stop_strings import AnswerText

Decode = Callable[[list[int]], str]
"""Turns token ids into text."""
_RESERVE = 4 * CHUNK
"""New tokens of each answer for which there is room from the start, where the cache stays in its place."""
OnText = Callable[[int, str], None]
"""Takes the number of a prompt and a piece of its answer's text, as soon as the piece is certain."""


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are made."""

    max_new_tokens: int = 256
    """Most tokens of an answer."""
    min_new_tokens: int = 0
    """Stop tokens cannot be chosen before so many tokens."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer; they belong to its `token_ids`."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer; they do not belong to its `text`."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are chosen."""
    keep_logits: bool = False
    """Return what each token was chosen from."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: out of range.
        """
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens is {self.min_new_tokens}, expected 0 to max_new_tokens {self.max_new_tokens}"
            )
        if not all(self.stop_strings):
            raise ConfigError("a stop string is empty")

    def with_stop_ids(self, stop_ids: frozenset[int]) -> GenerationOptions:
        """Return a copy that also ends at these tokens."""
        return replace(self, stop_ids=self.stop_ids | stop_ids)


@dataclass
class Generated:
    """One answer."""

    token_ids: list[int] = field(default_factory=list)
    """New tokens, the stop token included where one was chosen."""
    text: str = ""
    """Their text without special tokens, cut before a stop string; empty without a `decode`."""
    finish_reason: str = "length"
    """`stop_token`, `stop_string`, or `length`: `max_new_tokens` was reached."""
    logits: list[Tensor] = field(default_factory=list)
    """Per token [vocab_size], where asked for, on the last pipeline stage."""


def check_prompt(prompt: Prompt, window: int | None, max_new_tokens: int, name: str) -> None:
    """Refuse a prompt that cannot be answered, before anything is computed.

    Args:
        prompt: to check.
        window: positions the model may reach; None: any.
        max_new_tokens: most tokens of an answer.
        name: of the prompt, for messages.

    Raises:
        DataError: no tokens, or no room for the answer; the numbers are printed.
    """
    length = len(prompt.input_ids)
    if length == 0:
        raise DataError(f"{name}: the prompt is empty")
    positions = prompt.position_ticks.reach
    if window is not None and positions + max_new_tokens > window:
        raise DataError(
            f"{name}: the prompt has {length} tokens ({sum(prompt.num_tiles)} tiles) and takes {positions} positions; "
            f"with {max_new_tokens} new tokens that is {positions + max_new_tokens}, more than the window of {window}. "
            "Fewer tiles, a smaller rope_pos_id_stride or a larger window make room"
        )


def in_order(prompts: Sequence[Prompt]) -> list[int]:
    """Return the order in which prompts of a batch are worked on: the longest first, alike side by side."""
    return sorted(range(len(prompts)), key=lambda number: -len(prompts[number].input_ids))


def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    decode: Decode | None = None,
    names: Sequence[str] | None = None,
    on_text: OnText | None = None,
) -> list[Generated]:
    """Answer a batch of prompts.

    Args:
        engine: the model.
        prompts: at least one, none without tokens; see `check_prompt`.
        options: how.
        decode: text of token ids; needed for stop strings and `on_text`.
        names: what each sequence's draws are keyed by; its number in the batch by default.
        on_text: is given text as it comes.

    Returns:
        The answers, in the order of the prompts.

    Raises:
        DataError: an image cannot be read; the same on every rank.
        MemoryShortageError: the prompts do not fit, on this rank or another.
        NonFiniteError: logits are no numbers; names the sequence, the token, and the weight or layer at fault.
    """
    assert prompts and (decode is not None or not (options.stop_strings or on_text))
    answers = [Generated() for _ in prompts]
    texts = None if decode is None else [AnswerText(decode, options.stop_strings) for _ in prompts]
    keys = [str(number) for number in range(len(prompts))] if names is None else list(names)
    alive = in_order(prompts)

    def add(number: int, token: int, logits: Tensor | None) -> bool:
        """Add a token to an answer; return whether the answer goes on."""
        if options.keep_logits and logits is not None:
            answers[number].logits.append(logits)
        _add(answers[number], token, options, None if texts is None else texts[number], number, on_text)
        return answers[number].finish_reason == "length"

    batch = [prompts[number] for number in alive]
    answer_round = _answer_ahead if engine.static else _answer
    steps = range(0)
    try:
        with _shortage_as_error_by(batch) if engine.stages.alone else nullcontext():
            while alive and steps.stop < options.max_new_tokens:
                batch = [prompts[number].continued(answers[number].token_ids) for number in alive]
                steps = range(steps.stop, steps.stop + _steps_alike(engine, batch, options.max_new_tokens - steps.stop))
                alive = answer_round(engine, batch, options, alive, keys, add, steps)
    except _NoNumbersError as failed:
        number = failed.number
    else:
        number = None
    if number is not None:  # out of the handler: nothing holds on to what the failed attempt had allocated
        tokens = answers[number].token_ids
        where = explain(engine, prompts[number], tokens, _prefill)
        raise NonFiniteError(f"{keys[number]}: the logits of its new token {len(tokens) + 1} are not finite; {where}")
    for number, answer in enumerate(answers):
        if texts is not None:
            rest = texts[number].finish()
            if rest and on_text is not None:
                on_text(number, rest)
            answer.text = texts[number].text
    return answers


Add = Callable[[int, int, Tensor | None], bool]
"""Takes the number of a prompt, a token and its logits; returns whether the answer goes on."""


def _answer(
    engine: Engine,
    batch: Sequence[Prompt],
    options: GenerationOptions,
    alive: list[int],
    keys: Sequence[str],
    add: Add,
    steps: range,
) -> list[int]:
    """Read every token before the next is computed; return who goes on after tokens number `steps` of each answer."""
    session = Session(engine, batch, min(len(steps), CHUNK))
    logits = session.prefill()
    for step in steps:
        watchdog.progress("answering")
        tokens = _next(session, logits, options, [keys[number] for number in alive], step)
        for number, token in zip(alive, tokens, strict=True):
            _check(number, token)
        rows = [None] * len(alive) if logits is None else logits
        going = [row for row, number in enumerate(alive) if add(number, tokens[row], rows[row])]
        if not going or step + 1 == steps.stop:
            break
        if len(going) < len(alive):
            session.keep(going)
            alive, tokens = [alive[row] for row in going], [tokens[row] for row in going]
        logits = session.decode(tokens)
    return [alive[row] for row in going]


def _answer_ahead(
    engine: Engine,
    batch: Sequence[Prompt],
    options: GenerationOptions,
    alive: list[int],
    keys: Sequence[str],
    add: Add,
    steps: range,
) -> list[int]:
    """Read tokens while the next ones are computed; return who goes on after tokens number `steps` of each answer."""
    session = Session(engine, batch, min(len(steps), _RESERVE))
    logits = session.prefill()
    assert logits is not None
    choice = Choice(
        options.sampling, options.stop_ids, options.min_new_tokens, len(steps), steps.start, options.keep_logits
    )
    ahead = StepsAhead(session, logits, choice, alive, [keys[number] for number in alive])
    going = set(alive)
    while (reading := ahead.reading()) is not None:
        watchdog.progress("answering")
        rows = [None] * len(reading.numbers) if reading.logits is None else reading.logits
        for number, token, row in zip(reading.numbers, reading.get(), rows, strict=True):
            if number not in going:  # an ended sequence holds nothing, and its logits may be anything
                continue
            _check(number, token)
            if not add(number, token, row):
                going.remove(number)
                ahead.end(number)
    return [number for number in alive if number in going]


def _steps_alike(engine: Engine, batch: Sequence[Prompt], most: int) -> int:
    """Return for how many new tokens, `most` at most, each prompt keeps the rotary angles that it begins with.

    With longrope the angles of all its tokens change once a document outgrows the trained length, and then nothing in
    the cache is right any more. The token that is the first beyond is still chosen before.
    """
    switch = engine.model.rotary.scaling.switches_after
    if switch is None:
        return most
    room = [switch - 1 - prompt.position_ticks.last / prompt.position_ticks.denominator for prompt in batch]
    return min([most, *(int(positions) + 1 for positions in room if positions >= 0)])


class _NoNumbersError(Exception):
    """A token could not be chosen."""

    def __init__(self, number: int) -> None:
        """Remember the number of the prompt."""
        super().__init__(number)
        self.number = number


def _check(number: int, token: int) -> None:
    if token == NOT_FINITE:
        raise _NoNumbersError(number)


def _prefill(engine: Engine, prompt: Prompt) -> None:
    Session(engine, [prompt], 1).prefill()


@contextmanager
def _shortage_as_error_by(batch: Sequence[Prompt]) -> Iterator[None]:
    """Raise a lack of memory with the names of what was asked together; for a process that works alone."""
    try:
        with shortage_as_error():
            yield
    except MemoryShortageError as error:
        tokens = sum(len(prompt.input_ids) for prompt in batch)
        tiles = sum(len(prompt.tiles) for prompt in batch)
        raise MemoryShortageError(f"{error} ({len(batch)} prompts of {tokens} tokens, {tiles} tiles)") from None


def _next(
    session: Session, logits: Tensor | None, options: GenerationOptions, keys: Sequence[str], step: int
) -> list[int]:
    """Choose tokens on the last stage, and receive them on the others."""
    chosen = None
    if logits is not None:
        allowed = logits
        if step < options.min_new_tokens and options.stop_ids:
            allowed = logits.index_fill(1, torch.tensor(sorted(options.stop_ids), device=logits.device), -torch.inf)
        chosen = choose(allowed, options.sampling, keys, [step] * len(keys), of=logits)
    return session.engine.stages.share(chosen, len(keys), session.engine.device)


def _add(
    answer: Generated,
    token: int,
    options: GenerationOptions,
    text: AnswerText | None,
    number: int,
    on_text: OnText | None,
) -> None:
    answer.token_ids.append(token)
    if token in options.stop_ids:
        answer.finish_reason = "stop_token"
        return
    if text is None:
        return
    piece = text.push(token)
    if piece and on_text is not None:
        on_text(number, piece)
    if text.stopped:
        answer.finish_reason = "stop_string"
