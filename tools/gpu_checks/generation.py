"""Part (d): the first token of a prompt with images, decoding one and eight answers, decoding behind a long cache."""

from __future__ import annotations

import time
from typing import Any

import torch

from gpu_checks.model import Size, model_of, one_process, size_for
from gpu_checks.outcome import Outcome
from megatron_v2pe.device.device import Device
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.generation import GenerationOptions, generate
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.vision_cache import VisionCache
from megatron_v2pe.v2pe.position_ids import position_ticks

GIB = 2**30
NEW = {"cuda": 128, "cpu": 8}
"""Tokens decoded by each measurement."""
CASES = {
    "cuda": ((1, 2048), (8, 2048), (1, 131072)),
    "cpu": ((1, 256), (2, 256), (1, 2048)),
}
"""Answers at once, tokens of each prompt."""
IMAGES = {"cuda": (1800, 7), "cpu": (600, 2)}
"""Tokens and tiles of the prompt whose first token is timed."""


def run(kind: str) -> Outcome:
    """Measure; what is generated twice must be the same."""
    outcome, size = Outcome(), size_for(kind)
    with one_process(kind) as device, model_of(size, device) as model:
        model.eval()
        engine = Engine(model, VisionCache(0))
        outcome.must(_all_there(model, device), f"not every weight lies on {device.torch_device}")
        _first_token(outcome, engine, size, device, *IMAGES[kind])
        for answers, tokens in CASES[kind]:
            _decoding(outcome, engine, size, device, answers, tokens)
    if kind == "cpu":
        outcome.remarks.append("a small model in fp32 and short prompts; the rates say nothing about a GPU")
    return outcome


def _all_there(model: Any, device: Device) -> bool:
    return all(tensor.device == device.torch_device for tensor in [*model.parameters(), *model.buffers()])


def _first_token(outcome: Outcome, engine: Engine, size: Size, device: Device, tokens: int, tiles: int) -> None:
    seconds, found = [], []
    for _ in range(4):  # the first warms up
        prompt = prompt_of(engine, size, tokens, tiles)
        taken, answers = _timed(device, lambda given=prompt: generate(engine, [given], GenerationOptions(1)))
        seconds.append(taken)
        found.append(answers[0].token_ids)
    outcome.must(all(ids == found[0] for ids in found), f"first tokens of one prompt differ: {found}")
    outcome.add(f"first token, {tokens} tokens with {tiles} tiles", **{"seconds": min(seconds[1:]), "cold": seconds[0]})


def _decoding(outcome: Outcome, engine: Engine, size: Size, device: Device, answers: int, tokens: int) -> None:
    """Time prefill and decoding apart: an answer of one token, and one of many."""
    count = NEW[device.kind]
    prompts = [prompt_of(engine, size, tokens, 0, seed=number) for number in range(answers)]
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs: dict[int, list[float]] = {1: [], count + 1: []}
    found: list[list[list[int]]] = []
    for _ in range(3):  # the first warms up
        for new, seconds in runs.items():
            options = GenerationOptions(new, new)
            taken, said = _timed(device, lambda asked=options: generate(engine, prompts, asked))
            seconds.append(taken)
            if new > 1:
                found.append([answer.token_ids for answer in said])
    first, whole = (min(seconds[1:]) for seconds in runs.values())
    outcome.must(found[0] == found[-1], f"{answers} answers behind {tokens} tokens differ from run to run")
    outcome.must(all(len(ids) == count + 1 for ids in found[-1]), f"answers of other lengths than {count + 1}")
    outcome.add(
        f"{answers} at once behind {tokens} tokens",
        **{
            "prefill s": first,
            "prefill tokens/s": answers * tokens / first,
            "decode tokens/s": answers * count / max(whole - first, 1e-9),
            "peak GiB": device.peak_memory_bytes() / GIB,
        },
    )


def prompt_of(engine: Engine, size: Size, tokens: int, tiles: int, seed: int = 0) -> Prompt:
    """Return a prompt of random text with one image of so many tiles at its beginning."""
    model = engine.model.internvl
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, size.image_token - 10, (tokens,), generator=generator)
    ids[1 : 1 + tiles * model.tokens_per_tile] = size.image_token
    images = [(1, tiles)] if tiles else []
    ticks = position_ticks(tokens, images, [64] * len(images), model.tokens_per_tile)
    side = model.tile_size
    pixels = torch.randint(0, 256, (tiles, side, side, 3), dtype=torch.uint8, generator=generator)
    return Prompt(ids, ticks, pixels, (tiles,) if tiles else ())


def _timed(device: Device, action: Any) -> tuple[float, Any]:
    device.synchronize()
    began = time.perf_counter()
    result = action()
    device.synchronize()
    return time.perf_counter() - began, result
