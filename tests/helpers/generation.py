"""Generation with a cache, in any layout, beside the same answers recomputed whole at every step.

Runs inside a `WorkerPool`. The oracle is the model's own forward pass through Megatron-Core's modules on one process:
it shares neither the cache, nor the lean layers, nor the merging of partial attention with what is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from megatron_v2pe.generate import cached_attention, generation, kv_cache, static_step
from megatron_v2pe.generate import engine as engine_module
from megatron_v2pe.generate import session as session_module
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.generation import GenerationOptions, generate
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.session import Session
from megatron_v2pe.generate.vision_cache import VisionCache
from megatron_v2pe.models.micro_batch import PackCutter, TensorPack
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks, continue_positions
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import load_full


@dataclass(frozen=True)
class Case:
    """What to generate."""

    hf_config: dict[str, Any]
    weights: dict[str, Tensor]
    prompts: Sequence[Prompt]
    image_token_id: int
    layout: ParallelConfig = field(default_factory=ParallelConfig)
    policy: StridePolicy = field(default_factory=lambda: StridePolicy("default"))
    dtype: torch.dtype = torch.float64
    options: GenerationOptions = field(default_factory=lambda: GenerationOptions(max_new_tokens=8))
    prefill_tokens: int = 1 << 20
    chunk: int = kv_cache.CHUNK
    """Tokens by which the cache grows."""
    static: bool = False
    """Decode by static steps, uncaptured on the CPU."""
    device: str = "cpu"
    """Where it runs: `cpu`, or `cuda` in a pool of that device."""
    planted_break: str | None = None


@dataclass
class Answers:
    """What one rank gave; logits only on the last pipeline stage."""

    ids: list[list[int]]
    logits: list[Tensor]
    """Per prompt [steps, vocab_size]."""
    cached: list[int]
    """Tokens of each sequence still in this rank's cache at the end."""


def run(case: Case) -> Answers:
    """Generate on this rank with the engine."""
    options = replace(case.options, keep_logits=True)
    sessions: list[Session] = []

    def session(ready: Engine, prompts: Sequence[Prompt], reserve: int) -> Session:
        sessions.append(Session(ready, prompts, min(reserve, case.chunk)))
        return sessions[-1]

    made = built(case.hf_config, case.layout, ModelOptions(params_dtype=case.dtype), case.policy, case.image_token_id)
    watched, chunk = mock.patch.object(generation, "Session", session), mock.patch.object(kv_cache, "CHUNK", case.chunk)
    with made as model, BREAKS[case.planted_break](), watched, chunk:
        load_full(model, case.weights)
        ready = Engine(model.eval().to(case.device), VisionCache(), case.prefill_tokens, case.static)
        answers = generate(ready, case.prompts, options)
        return Answers(
            [answer.token_ids for answer in answers],
            [torch.stack(answer.logits).cpu().clone() for answer in answers if answer.logits],
            sessions[0].cache.lengths,
        )


def captured_steps(case: Case) -> int:
    """Generate; return how many steps were captured in a CUDA graph.

    Raises:
        AssertionError: one could not be.
    """
    found: list[bool] = []
    original = static_step.StaticStep._captured

    def captured(self: static_step.StaticStep) -> bool:
        found.append(original(self))
        return found[-1]

    with mock.patch.object(static_step.StaticStep, "_captured", captured):
        run(case)
    assert all(found), "a step could not be captured"
    return len(found)


def texts(case: Case) -> list[tuple[str, list[int], str, list[str]]]:
    """Text, tokens, reason of the end and pieces as they came of every answer; tokens are letters."""
    pieces: list[list[str]] = [[] for _ in case.prompts]

    def decode(ids: list[int]) -> str:
        return "".join(chr(ord("a") + number % 26) for number in ids)

    made = built(case.hf_config, case.layout, ModelOptions(params_dtype=case.dtype), case.policy, case.image_token_id)
    with made as model:
        load_full(model, case.weights)
        ready = Engine(model.eval(), VisionCache(), case.prefill_tokens, case.static)
        heard = lambda number, text: pieces[number].append(text)  # noqa: E731
        answers = generate(ready, case.prompts, case.options, decode, on_text=heard)
    found = zip(answers, pieces, strict=True)
    return [(answer.text, answer.token_ids, answer.finish_reason, given) for answer, given in found]


def batch_after_batch(case: Case, batches: Sequence[Sequence[int]]) -> tuple[list[list[list[int]]], list[int]]:
    """Answer batches of a case's prompts with one engine: tokens, and per batch which object its first step was."""
    made = built(case.hf_config, case.layout, ModelOptions(params_dtype=case.dtype), case.policy, case.image_token_id)
    with made as model:
        load_full(model, case.weights)
        ready = Engine(model.eval(), VisionCache(), case.prefill_tokens, case.static)
        found: list[list[list[int]]] = []
        steps: list[int] = []
        for batch in batches:
            answers = generate(ready, [case.prompts[number] for number in batch], case.options)
            found.append([answer.token_ids for answer in answers])
            steps.append(id(ready.step(len(batch))))
        return found, steps


def recomputed(case: Case, ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [steps, vocab_size] per prompt, each step's from a whole forward pass; the answers are given."""
    made = built(
        case.hf_config, ParallelConfig(), ModelOptions(params_dtype=case.dtype), case.policy, case.image_token_id
    )
    with made as model:
        load_full(model, case.weights)
        return [recompute(model.eval(), prompt, answer) for prompt, answer in zip(case.prompts, ids, strict=True)]


@torch.no_grad()
def recompute(model: Any, prompt: Prompt, answer: Sequence[int]) -> Tensor:
    """Logits [steps, vocab_size] that predict each token of an answer; one whole forward pass each.

    Args:
        model: the whole model on this process, in evaluation mode.
        prompt: with normalised tiles [tiles, 3, size, size].
        answer: tokens, at least one.
    """
    assert isinstance(prompt.tiles, Tensor), "normalised tiles are a tensor"
    features = model.encode_images(prompt.tiles) if prompt.tiles.shape[0] else None
    ticks, last = prompt.position_ticks, prompt.position_ticks.last
    steps: list[Tensor] = []
    for count in range(len(answer)):
        chosen = prompt.input_ids.new_tensor(answer[:count])
        ids = torch.cat([prompt.input_ids, chosen.masked_fill(chosen == model.image_token_id, -1)])
        more = continue_positions(last, count, ticks.denominator)
        reached = Ticks(torch.cat([ticks.values, more]), ticks.denominator)
        cutter = PackCutter(model.coordinates, model.image_token_id, model.internvl.tokens_per_tile)
        batch = cutter.cut(TensorPack(ids, reached, [len(ids)], num_tiles=[prompt.tiles.shape[0]]))
        batch = replace(batch, input_ids=torch.cat([prompt.input_ids, chosen]))  # an image token may be of no image
        reach = reached.last if model.rotary.scaling.switches_after else last  # dynamic scaling is the prompt's
        steps.append(model.logits_of_last(replace(batch, last_ticks=(reach,)), features))
    return torch.stack(steps)


def relative_error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference of any step's logits, relative to the largest logit of the prompt."""
    assert len(expected) == len(found)
    pairs = zip(expected, found, strict=True)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


def _positions_restart() -> Any:
    """Count generated tokens' positions by the cache's length from 0 instead of going on after the prompt's last."""

    def restarted(last: int, count: int, denominator: int) -> Tensor:
        return continue_positions(0, count, denominator)

    return mock.patch.object(session_module, "continue_positions", restarted)


def _cache_dropped() -> Any:
    """Let context-parallel rank 1 find nothing in its cache at decode."""
    original = cached_attention.CachedAttention._attend

    def attend(self: Any, target: Any, query: Tensor, keys: Tensor, values: Tensor) -> Any:
        found = original(self, target, query, keys, values)
        return found if self.group.rank() == 0 else cached_attention.nothing(query)

    return mock.patch.object(cached_attention.CachedAttention, "_attend", attend)


def _lse_ignored() -> Any:
    """Merge ranks' partial results as if they weighed the same."""

    def equal_shares(output: Tensor, lse: Tensor, block_output: Tensor, block_lse: Tensor) -> None:
        output.lerp_(block_output.to(output.dtype), 0.5)

    return mock.patch.object(cached_attention, "merge", equal_shares)


def _pieces_forget() -> Any:
    """Let later pieces of a prompt not see the earlier ones."""
    return mock.patch.object(cached_attention.CachedAttention, "_add_earlier", lambda *arguments: None)


def _stand_still() -> Any:
    """Let static steps forget that they have added a token."""
    original = static_step.StaticStep._body

    def body(self: Any) -> Tensor:
        found = original(self)
        self.lengths.sub_(1)
        return found

    return mock.patch.object(static_step.StaticStep, "_body", body)


@contextmanager
def _fake_graphs(problem: str | None = None) -> Iterator[None]:
    """Run what captures and replays a step on the CPU: a capture computes nothing, a replay runs the step.

    Args:
        problem: what a capture says when it fails; None where it does not.
    """
    made: list[static_step.StaticStep] = []

    def captured(*settings: Any, capture: bool) -> static_step.StaticStep:
        made.append(static_step.StaticStep(*settings, capture=True))
        return made[-1]

    class Graph:
        def __init__(self) -> None:
            self.step = made[-1]

        def replay(self) -> None:
            assert self.step._found is not None
            self.step._found.copy_(self.step._body())

    @contextmanager
    def capturing(graph: Graph, **_: Any) -> Iterator[None]:
        step = graph.step
        state = step.lengths.clone(), step.at.clone()
        yield
        step.lengths.copy_(state[0])
        step.at.copy_(state[1])
        if problem is not None:
            step.lengths.add_(5)  # whatever a capture that failed has left
            raise RuntimeError(problem)

    class Stream:
        def wait_stream(self, other: Any) -> None:
            assert isinstance(other, Stream)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(engine_module, "StaticStep", captured))
        for name, fake in {
            "CUDAGraph": Graph,
            "graph": capturing,
            "Stream": Stream,
            "current_stream": Stream,
            "stream": nullcontext,
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fake))
        yield
        assert made


BREAKS: dict[str | None, Callable[[], AbstractContextManager[Any]]] = {
    None: nullcontext,
    "positions restart": _positions_restart,
    "cache of a rank dropped": _cache_dropped,
    "lse ignored": _lse_ignored,
    "pieces forget": _pieces_forget,
    "static steps stand still": _stand_still,
    "angles of the prompt": lambda: mock.patch.object(generation, "_steps_alike", lambda engine, batch, most: most),
    "fake graphs": _fake_graphs,
    "fake graphs that fail": lambda: _fake_graphs("operation not permitted when stream is capturing"),
}
