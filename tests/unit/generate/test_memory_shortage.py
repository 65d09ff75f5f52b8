"""Memory that runs out while a process alone answers is one error that names what was asked together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_v2pe.errors import MemoryShortageError
from megatron_v2pe.generate import generation
from megatron_v2pe.generate.generation import GenerationOptions, generate
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.rotary import RotaryEmbedding

MODEL = SimpleNamespace(rotary=RotaryEmbedding(8, 1e4, 256))


def prompts():
    return [
        Prompt(torch.zeros(n, dtype=torch.long), Ticks(torch.arange(n), 1), torch.zeros(t, 3, 8, 8), (t,))
        for n, t in ((30, 2), (12, 1))
    ]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryShortageError("out of memory: the prompt needs at least 9.00 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_tokens_and_tiles_are_named(monkeypatch, static, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(generation, "Session", refuse)
    engine = SimpleNamespace(static=static, model=MODEL, stages=SimpleNamespace(alone=True))
    with pytest.raises(MemoryShortageError) as found:
        generate(engine, prompts(), GenerationOptions(4))
    assert str(error)[:20] in str(found.value)
    assert "(2 prompts of 42 tokens, 3 tiles)" in str(found.value)


def test_of_several_processes_only_what_is_agreed_upon_is_told(monkeypatch):
    """Another may wait for this one in an exchange: the run ends."""

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generation, "Session", refuse)
    engine = SimpleNamespace(static=False, model=MODEL, stages=SimpleNamespace(alone=False))
    with pytest.raises(torch.OutOfMemoryError):
        generate(engine, prompts(), GenerationOptions(4))


def test_what_is_no_lack_of_memory_is_left_as_it_is(monkeypatch):
    def refuse(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(generation, "Session", refuse)
    engine = SimpleNamespace(static=False, model=MODEL, stages=SimpleNamespace(alone=True))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        generate(engine, prompts(), GenerationOptions(4))
