"""Learning rates and weight decays of parts, and the tower's layer-wise decay: the published formula by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.train.optimizer_step import build_scheduler, overrides_of
from megatron_v2pe.train.optimizers import parts
from megatron_v2pe.train.optimizers.parts import part_of, rate_of
from megatron_v2pe.train.part_rates import PartRates

LAYERS = 24
NAMES = {
    "vision_model.class_token": ("vision", 3),
    "module.module.vision_model.position_embedding": ("vision", 3),
    "vision_model.patch_embedding.bias": ("vision", 1),
    "vision_model.decoder.layers.0.ls1": ("vision", 1),
    "vision_model.decoder.layers.23.mlp.linear_fc1.weight": ("vision", 2),
    "vision_model.decoder.layers.3.mlp.linear_fc1.adapter.up.lora_B": ("adapter", 2),
    "vision_projection.linear_fc1.weight": ("projector", 2),
    "language_model.embedding.word_embeddings.weight": ("embedding", 2),
    "language_model.output_layer.weight": ("embedding", 2),
    "language_model.decoder.layers.3.mlp.linear_fc1.weight": ("language", 2),
    "language_model.decoder.final_layernorm.weight": ("language", 1),
    "module.language_model.decoder.layers.3.mlp.linear_fc1.adapter.gate.lora_A": ("adapter", 2),
}


def published(name, rate, layers):
    """Return multiplier and weight decay of the published custom trainer, from names of the Hugging Face layout."""
    identity = 0 if "embeddings." in name else int(name.split("layers.")[1].split(".")[0]) + 1
    return rate ** (layers + 2 - identity - 1)


def test_parts_by_name():
    assert {name: part_of(name) for name in NAMES} == {name: part for name, (part, _) in NAMES.items()}


def test_layer_wise_decay_and_what_does_not_decay_are_the_published_custom_trainers(monkeypatch):
    monkeypatch.setenv("VIT_LAYER_DECAY_RATE", "0.9")
    words = ["--use_custom_trainer", "True", "--learning_rate", "4e-5", "--weight_decay", "0.05"]
    settings = cli.parse(words, RECIPES).optimizer
    theirs = {
        "vision_model.class_token": "vision_model.embeddings.class_embedding",
        "vision_model.position_embedding": "vision_model.embeddings.position_embedding",
        "vision_model.patch_embedding.weight": "vision_model.embeddings.patch_embedding.weight",
        **{
            f"vision_model.decoder.layers.{i}.self_attention.linear_qkv.weight": f"vision_model.encoder.layers.{i}.qkv"
            for i in range(LAYERS)
        },
    }
    for name, hf in theirs.items():
        found = rate_of(settings, name, 2, LAYERS)
        assert found.max_lr == pytest.approx(4e-5 * published(hf, 0.9, LAYERS), rel=1e-12)
        assert (found.min_lr, found.weight_decay) == (0.0, 0.05)
    assert rate_of(settings, "language_model.output_layer.weight", 2, LAYERS) == parts.Rate(4e-5, 0.0, 0.05)
    for name in ("vision_model.decoder.layers.0.ls1", "language_model.decoder.final_layernorm.weight"):
        assert rate_of(settings, name, 1, LAYERS).weight_decay == 0
    for value, rate in (("1.0", None), ("0.5", 0.5)):
        monkeypatch.setenv("VIT_LAYER_DECAY_RATE", value)
        assert cli.parse(words, RECIPES).optimizer.vision_lr_decay == rate
    monkeypatch.setenv("VIT_LAYER_DECAY_RATE", "big")
    with pytest.raises(ConfigError, match="VIT_LAYER_DECAY_RATE is 'big' in the environment, expected a number above"):
        cli.parse(words, RECIPES)
    assert cli.parse(["--use_custom_trainer", "False"], RECIPES).optimizer == AdamWConfig()


def test_each_part_has_its_own_rate_and_decay_and_the_others_the_runs():
    settings = AdamWConfig(
        lr=1e-3,
        min_lr=1e-4,
        weight_decay=0.1,
        vision_lr=1e-5,
        adapter_lr=2e-3,
        adapter_b_lr_ratio=16.0,
        embedding_weight_decay=0.0,
        projector_weight_decay=0.3,
    )
    found = {name: rate_of(settings, name, dimensions, LAYERS) for name, (_, dimensions) in NAMES.items()}
    assert found["vision_model.class_token"] == parts.Rate(1e-5, pytest.approx(1e-6), 0.1)
    assert found["vision_projection.linear_fc1.weight"] == parts.Rate(1e-3, 1e-4, 0.3)
    assert found["language_model.output_layer.weight"] == parts.Rate(1e-3, 1e-4, 0.0)
    assert found["language_model.decoder.layers.3.mlp.linear_fc1.weight"] == parts.Rate(1e-3, 1e-4, 0.1)
    first, second = (found[name] for name in found if "lora_" in name)
    assert (first.max_lr, second.max_lr) == (pytest.approx(16 * 2e-3), 2e-3)
    layered = replace(settings, vision_lr_decay=0.5)
    name = "vision_model.decoder.layers.3.mlp.linear_fc1.adapter.up.lora_B"
    assert rate_of(layered, name, 2, LAYERS).max_lr == pytest.approx(16 * 2e-3 * 0.5**21)


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_model, self.language_model = nn.Linear(2, 2), nn.Linear(2, 2)


def test_without_settings_of_parts_no_parameter_has_an_override():
    assert overrides_of(Stage(), AdamWConfig(), LAYERS) == {}
    ((key, override),) = overrides_of(Stage(), AdamWConfig(weight_decay_on_all=False), LAYERS).items()
    assert override == {"wd_mult": 0.0}
    one = nn.Parameter(torch.ones(1))
    assert key.matches(one, "vision_model.bias") and not key.matches(one, "vision_model.weight")
    ((_, override),) = overrides_of(Stage(), AdamWConfig(vision_lr=1e-6, vision_weight_decay=0.2), LAYERS).items()
    assert override == {"max_lr": 1e-6, "min_lr": 0.0, "start_wd": 0.2, "end_wd": 0.2}
    assert overrides_of(Stage(), AdamWConfig(vision_lr=AdamWConfig.lr, vision_weight_decay=0.05), LAYERS) == {}


def test_the_rates_of_parts_are_logged_as_they_were_in_the_step():
    settings = AdamWConfig(lr=1e-3, min_lr=1e-4, warmup_steps=4, vision_lr=1e-5, vision_lr_decay=0.5)
    rates = PartRates(settings, 20, parts.shown_rates(settings, 3), log_interval=5)
    assert [step for step in range(1, 13) if rates.is_due(step, step == 12)] == [5, 10, 12]
    scheduled = type("Optimizer", (), {"param_groups": [{"max_lr": 1e-5 * 0.5, "min_lr": 1e-6 * 0.5}, {}]})()
    scheduler = build_scheduler(scheduled, settings, 20)
    for step in range(1, 21):
        found = rates.run(step)
        assert found["lr/vision_model"] == pytest.approx(scheduled.param_groups[0]["lr"], rel=1e-12)
        assert found["lr/language_model"] == found["lr/embeddings"] == scheduled.param_groups[1]["lr"]
        assert found["lr/vision_model_embeddings"] == pytest.approx(found["lr/vision_model"] * 0.5**3)
        scheduler.step(increment=1)
    assert parts.shown_rates(AdamWConfig(vision_weight_decay=0.3), 3) == {}
    adapters = AdamWConfig(lr=1e-3, adapter_lr=1e-2, vision_lr_decay=0.5)
    shown = parts.shown_rates(adapters, 3, frozen={"vision", "language", "embedding"})
    assert shown == {"vision_projection": 1e-3, "adapters": 1e-2}


def test_a_rate_of_a_part_that_does_not_learn_is_refused():
    parts.check_parts(AdamWConfig(vision_lr_decay=0.5), ["adapter"])
    with pytest.raises(ConfigError, match="optimizer.adapter_lr is 0.1, but nothing of adapters learns in this run"):
        parts.check_parts(AdamWConfig(adapter_lr=0.1), ["vision", "language"])
