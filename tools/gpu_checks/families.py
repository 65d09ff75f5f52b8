"""Part (g): every language model and both towers beside transformers' InternVL on the same device, and their speed.

The models are those of `tests/parallel/test_family_parity.py` with heads as wide, and groups as large, as the published
ones have: 64, 96 and 128 numbers, 1 to 16 queries for a key. First a step and greedy answers on one card, in float32
beside transformers in float32, and in bfloat16, where ours may be as far from float32 as transformers in bfloat16 is.
Then one timed step of InternVL3-1B, and of four layers as wide as those of InternVL3-8B, beside transformers' step of
the same shape. Last, Qwen3 with the 6B tower in every kind of layout, several ranks on the card under NCCL.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from gpu_checks.outcome import Outcome
from helpers.family_cases import FAMILIES, VOCABULARY
from helpers.family_parity import CACHE_TOLERANCE, LAYOUTS, Runs
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.models.presets import preset_config
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.worker_pool import WorkerError, WorkerPool
from perf._training import Shape
from perf.step_beside_transformers import Task, ours, theirs

POLICY = StridePolicy("v2pe_fix", 1)
GIB = 2**30
HEADS: dict[str, tuple[int, int, int]] = {
    "internlm2": (4, 2, 128),
    "internlm2 + 6B tower": (4, 2, 128),
    "internlm3": (16, 1, 128),
    "llama 3": (8, 1, 128),
    "yi": (7, 1, 128),
    "phi3": (4, 4, 96),
    "qwen2": (10, 2, 128),
    "qwen2 tied": (14, 2, 64),
    "qwen3": (4, 2, 128),
    "qwen3 tied": (16, 8, 128),
}
"""Query heads, groups and width of a head; InternLM3, Llama 3 and Yi have a group of as many as the published ones."""
TOLERANCE = {"logits": 1e-3, "loss": 1e-5, "gradients": 1e-3}
"""Errors allowed in float32 beside transformers, see `family_parity.difference`; documents are longer than the test's.
On the CPU the largest were 5e-5, 1e-7 and 1e-5."""
WORSE_THAN_THEIRS = 2.0
"""How many times as far from float32 as transformers in bfloat16 ours may be, and a little more where both are near."""
NEAR = {"logits": 0.05, "loss": 1e-3, "gradients": 0.05}
SHARDED = "qwen3 tied"
SHARDED_LAYOUTS = ("TP2 + SP", "CP2 ring", "CP2 all-to-all", "PP2", "DP2", "TP2 x CP2 + SP", "TP2, replicated tower")
ANSWERING = ("internlm3", "phi3", "qwen2 tied", "qwen3 tied")
"""Families that answer; every shape of heads costs seconds of compilation, and these are unlike one another."""
SMALL = ("qwen3 tied",)
"""Families that run on the CPU."""


@dataclass(frozen=True)
class Preset:
    """A published model, or some of its layers."""

    name: str
    layers: int | None = None
    """Layers of the decoder; None: all."""
    tower_layers: int | None = None

    @property
    def vocab(self) -> int:
        """Rows of the vocabulary."""
        return int(self.hf_config()["llm_config"]["vocab_size"])

    def __str__(self) -> str:
        """Return it in words."""
        return self.name if self.layers is None else f"{self.layers} layers of {self.name}"

    def hf_config(self) -> dict[str, Any]:
        """Return the `config.json`."""
        config = preset_config(self.name)
        for section, layers in (("llm_config", self.layers), ("vision_config", self.tower_layers)):
            if layers is not None:
                config[section]["num_hidden_layers"] = layers
        return config


TASKS: dict[str, tuple[Task, ...]] = {
    "cuda": (
        Task(Preset("InternVL3-1B"), 8192, 24, 200, "cuda", "bf16", repeats=3),
        Task(Preset("InternVL3-8B", 4, 4), 16384, 48, 200, "cuda", "bf16", repeats=3),
    ),
    "cpu": (Task(Shape(1, 2, 1, 512, 1, 1), 300, 1, 10, "cpu", "fp32", repeats=1),),
}


def run(device: str) -> Outcome:
    """Compare and measure; on the CPU one family, one layout and a small step."""
    outcome = Outcome()
    pools = {size: WorkerPool(size, 300 if device == "cpu" else 60, device) for size in (1, 2, 4)}
    runs = Runs(lambda size, function, **given: pools[size].run(function, **given)[-1], real, "family, longer", device)
    try:
        for name in SMALL if device == "cpu" else HEADS:
            _guarded(outcome, name, lambda name=name: _one_card(outcome, runs, name))
        for task in TASKS[device]:
            _guarded(outcome, str(task.shape), lambda task=task: _timed(outcome, pools[1], task))
        for layout in SHARDED_LAYOUTS[:1] if device == "cpu" else SHARDED_LAYOUTS:
            _guarded(outcome, f"{SHARDED}, {layout}", lambda layout=layout: _sharded(outcome, runs, layout))
    finally:
        for pool in pools.values():
            pool.close()
    if device == "cpu":
        outcome.remarks.append("small models and fewer of them on the CPU; the rates say nothing about a GPU")
    return outcome


def real(name: str) -> dict[str, Any]:
    """Return the small model of a family with heads as the published ones have them."""
    config, (heads, groups, width) = copy.deepcopy(FAMILIES[name].config()), HEADS[name]
    llm, vision = config["llm_config"], config["vision_config"]
    stated = "head_dim" in llm
    llm |= {"num_attention_heads": heads, "num_key_value_heads": groups, "intermediate_size": 512}
    llm |= {"hidden_size": 256, "head_dim": width} if stated else {"hidden_size": heads * width}
    for list_ in ("short_factor", "long_factor"):
        if list_ in (scaling := llm.get("rope_scaling") or {}):
            scaling[list_] = [scaling[list_][pair * len(scaling[list_]) // (width // 2)] for pair in range(width // 2)]
    of_tower = 128 if vision["qk_normalization"] else 64
    vision |= {"hidden_size": of_tower * vision["num_attention_heads"], "intermediate_size": 512}
    assert llm["vocab_size"] == VOCABULARY
    return config


def _guarded(outcome: Outcome, what: str, check: Any) -> None:
    """Run a check; where it fails, note it and go on."""
    try:
        check()
    except (WorkerError, AssertionError) as error:  # the pool starts anew
        outcome.must(False, f"{what}: {str(error)[-800:]}")


def _one_card(outcome: Outcome, runs: Runs, name: str) -> None:
    """Compare a family's step in float32 and bfloat16, and its answers."""
    found = runs.errors(name, "one process", POLICY)
    _within(outcome, f"{name}, fp32", found, TOLERANCE)
    half = runs.errors(name, "one process", POLICY, dtype=torch.bfloat16)
    other = runs.errors_of_the_reference(name, POLICY, torch.bfloat16)
    allowed = {what: WORSE_THAN_THEIRS * other[what] + near for what, near in NEAR.items()}
    _within(outcome, f"{name}, bf16", half, allowed, {f"theirs {what}": other[what] for what in NEAR})
    if name not in ANSWERING:
        return
    expected, answers = runs.answers(name, ["one process"])
    for steps, (ids, error) in answers.items():
        outcome.add(f"{name}, answers, {steps}", **{"as transformers'": str(ids == expected), "cache error": error})
        outcome.must(ids == expected, f"{name}, {steps}: answers {ids}, transformers answers {expected}")
        outcome.must(error <= 10 * CACHE_TOLERANCE, f"{name}, {steps}: cache against recompute {error:.1e}")


def _sharded(outcome: Outcome, runs: Runs, layout: str) -> None:
    """Compare the sharded family's step in a layout with transformers."""
    found = runs.errors(SHARDED, layout, POLICY)
    ranks = 2 if layout == "DP2" else LAYOUTS[layout].model_parallel_size
    _within(outcome, f"{SHARDED}, {layout}, fp32", found, TOLERANCE, {"ranks": ranks})


def _within(
    outcome: Outcome, what: str, found: dict[str, Any], allowed: dict[str, float], more: dict[str, Any] | None = None
) -> None:
    outcome.add(what, **{f"{name} error": found[name] for name in allowed}, **(more or {}))
    for name, most in allowed.items():
        where = f" (worst: {found['worst']})" if name == "gradients" else ""
        outcome.must(found[name] <= most, f"{what}: {name} {found[name]:.1e}, allowed {most:.1e}{where}")


def _timed(outcome: Outcome, pool: WorkerPool, task: Task) -> None:
    """Measure ours and theirs one after the other in one process."""
    mine, other = pool.run(ours, task=task)[0], pool.run(theirs, task=task)[0]
    flop = StepCost.of(InternVLConfig.from_hf(task.shape.hf_config())).flop(
        task.tokens, task.tokens**2, task.tiles, task.supervised
    )
    outcome.add(
        f"{task.shape}, step of {task.tokens} tokens, {task.tiles} tiles",
        **{
            "s": mine.seconds,
            "theirs s": other.seconds,
            "speed": other.seconds / mine.seconds,
            "TFLOP/s": flop / mine.seconds / 1e12,
            "GiB": mine.peak_bytes / GIB,
            "theirs GiB": other.peak_bytes / GIB,
        },
    )
    for who, measured in (("ours", mine), ("transformers", other)):
        guess = torch.tensor(float(task.shape.vocab)).log().item()
        near = abs(measured.loss - guess) < 2
        outcome.must(near, f"{task.shape}: first loss of {who} {measured.loss}, a random guess has {guess:.1f}")
