"""The learning rate of every step and which tensors decay: as the published recipe says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import yaml

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.recipes.internvl2_2b import internvl2_2b_v2pe_32k
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.config import AdamWConfig, ExperimentConfig
from megatron_v2pe.train.optimizer_step import build_scheduler
from megatron_v2pe.train.optimizers.settings import OPTIMIZERS, SCHEDULES, OptimizerSettings


class Fake:
    """What a scheduler asks of an optimizer."""

    def __init__(self, lr):
        self.param_groups = [{"lr": lr, "weight_decay": 0.0}]


def rates(settings, steps, shown):
    optimizer = Fake(settings.lr)
    scheduler = build_scheduler(optimizer, settings, steps)
    found = {}
    for step in range(steps):
        if step in shown:
            found[step] = optimizer.param_groups[0]["lr"]
        scheduler.step(increment=1)
    found[steps] = optimizer.param_groups[0]["lr"]
    return found


def test_the_published_schedule():
    """Warm-up over ceil(0.03 x 20,000) = 600 steps from 0, then a cosine to 0."""
    recipe = internvl2_2b_v2pe_32k()
    steps, peak = recipe.train.train_steps, recipe.optimizer.lr
    shown = (0, 1, 299, 599, 600, 601, 5000, 10300, 19999)
    found = rates(recipe.optimizer, steps, shown)
    for step in (*shown, steps):
        warm = peak * step / 600
        expected = warm if step < 600 else peak * 0.5 * (1 + math.cos(math.pi * (step - 600) / (steps - 600)))
        assert found[step] == pytest.approx(expected, rel=1e-9, abs=1e-20), step


def test_resuming_is_a_jump():
    settings = AdamWConfig(lr=1e-3, warmup_ratio=0.1)
    optimizer = Fake(1e-3)
    build_scheduler(optimizer, settings, 50).step(increment=23)
    assert optimizer.param_groups[0]["lr"] == rates(settings, 50, (23,))[23]


@pytest.mark.parametrize(("style", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_styles(style, half):
    settings = AdamWConfig(lr=1.0, min_lr=0.0, warmup_ratio=0.0, lr_decay_style=style)
    assert rates(settings, 100, (50,))[50] == pytest.approx(half)


def test_warm_up_rounds_up():
    assert AdamWConfig(warmup_ratio=0.03).steps_of_warmup(50) == 2
    assert AdamWConfig(warmup_ratio=0.03).steps_of_warmup(20000) == 600


@dataclass(frozen=True)
class Sgd(OptimizerSettings):
    """An optimizer from outside: one class, here with a `build` of its own."""

    name: str = "sgd"
    momentum: Annotated[float, Range(0, 1)] = 0.9
    """Of the gradients."""

    def megatron_settings(self) -> dict[str, Any]:
        return {"optimizer": "sgd", "sgd_momentum": self.momentum}

    def build(self, *arguments: Any) -> Any:
        raise NotImplementedError


def half(settings, steps):
    return {"lr_decay_style": "linear", "lr_decay_steps": steps // 2}


@pytest.fixture
def sgd(monkeypatch):
    OPTIMIZERS.names()
    monkeypatch.setitem(OPTIMIZERS._members, "sgd", Sgd)
    monkeypatch.setitem(SCHEDULES._members, "half", half)


def test_a_further_optimizer_has_flags_of_its_own_and_is_read_back_from_what_a_run_saves(sgd):
    words = ["--recipe", "quickstart", "--optimizer.momentum", "0.5", "--optimizer.name", "sgd", "--weight_decay", "0"]
    settings = cli.parse(words, RECIPES).optimizer
    assert settings == Sgd(lr=1e-3, min_lr=5e-5, warmup_ratio=0.05, weight_decay=0.0, momentum=0.5)
    saved = cli.parse(words, RECIPES).to_yaml()
    assert ExperimentConfig().updated(yaml.safe_load(saved), "saved").optimizer == settings
    settings.validate()
    with pytest.raises(ConfigError, match="optimizer.name is 'sgd', but these are settings of AdamWConfig"):
        AdamWConfig(name="sgd").validate()
    with pytest.raises(ConfigError, match=r"unknown setting 'optimizer.adam_beta1'"):
        cli.parse([*words, "--optimizer.adam-beta1", "0.9"], RECIPES)
    with pytest.raises(ConfigError, match=r"unknown setting 'optimizer.momentum'"):
        cli.parse(["--optimizer.momentum", "0.9"], RECIPES)


def test_a_further_schedule_is_chosen_by_its_name(sgd):
    settings = cli.parse(["--optimizer.lr-decay-style", "half", "--warmup_ratio", "0", "--optimizer.lr=1"], RECIPES)
    assert rates(settings.optimizer, 100, (25,))[25] == 0.5


def test_optimizers_and_schedules_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="optimizer.name is 'adamv', expected one of adamw"):
        cli.parse(["optimizer.name=adamv"], RECIPES)
    with pytest.raises(ConfigError, match="lr_decay_style is 'square', expected one of cosine, linear, constant"):
        cli.parse(["optimizer.lr_decay_style=square"], RECIPES)


def test_settings_saved_before_there_was_a_choice_are_adamws():
    saved = {"optimizer": {"lr": 1e-4, "adam_beta2": 0.95, "optimizer_cpu_offload": False}}
    assert ExperimentConfig().updated(saved, "saved").optimizer == AdamWConfig(lr=1e-4, adam_beta2=0.95)


def test_what_could_not_be_resumed_or_shared_is_refused_before_the_start(sgd, monkeypatch):
    """Megatron-Core restores and shards Adam's state alone, and says so by an assertion in the middle of a run."""
    words = ["--recipe", "quickstart", "--optimizer.name", "sgd"]
    cli.parse([*words, "--parallel.use-distributed-optimizer", "false"], RECIPES).validate()
    with pytest.raises(ConfigError, match="optimizer.name is sgd.*set parallel.use_distributed_optimizer false"):
        cli.parse(words, RECIPES).validate()
    monkeypatch.setattr(Sgd, "build", OptimizerSettings.build)
    with pytest.raises(ConfigError, match="optimizer.name is sgd: .*restores Adam's state.*give Sgd a `build`"):
        Sgd().validate()
