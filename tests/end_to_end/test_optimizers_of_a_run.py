"""A run of whole epochs with Muon, rates of its parts, a late fall and an average of weights: stopped and gone on."""

from __future__ import annotations

import json
import math

import pytest
import torch

from megatron_v2pe.checkpoint.folder import AVERAGED, newest
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.main import run

OPTIMIZER = {
    "name": "muon",
    "lr": 1e-3,
    "vision_lr": 1e-4,
    "vision_lr_decay": 0.5,
    "lr_decay_style": "wsd",
    "warmup_ratio": 0,
    "warmup_steps": 1,
    "wsd_decay_ratio": 0.5,
    "ema_decay": 0.9,
}


def config_of(tiny, save, optimizer, **train):
    changes = {
        "model": {"model_name_or_path": str(tiny / "hf"), "converted_dir": str(tiny / "converted")},
        "data": {"meta_path": str(tiny / "data" / "meta.json"), "max_seq_length": 400, "max_packed_tokens": 700},
        "train": {"epochs": 1, "device": "cpu", "precision": "fp32", **train},
        "parallel": {"use_distributed_optimizer": False},
        "checkpoint": {"save": str(save)},
        "logging": {"tensorboard": False},
        "optimizer": optimizer,
    }
    config = ExperimentConfig().updated(changes, "test")
    config.validate(1)
    return config


def rows_of(save):
    rows = map(json.loads, (save / "logs" / "metrics.jsonl").read_text().splitlines())
    return {row["iteration"]: row for row in rows if "loss" in row}


def test_it_is_stopped_and_goes_on_to_the_bit(tiny, tmp_path):
    run(config_of(tiny, tmp_path / "whole", OPTIMIZER))
    whole = rows_of(tmp_path / "whole")
    steps = max(whole)
    assert steps > 4, "an epoch"
    begin = steps - math.ceil(steps / 2)
    for number, row in whole.items():
        done = number - 1
        share = min(done, 1) if done <= begin else 0.5 * (1 + math.cos(math.pi * (done - begin) / (steps - begin)))
        assert row["lr"] == row["lr/language_model"] == pytest.approx(1e-3 * share, rel=1e-9)
        assert row["lr/vision_model"] == pytest.approx(1e-4 * 0.5 * share, rel=1e-9)
        assert row["lr/vision_model_embeddings"] < row["lr/vision_model"] or not done
    for _ in range(2):
        run(config_of(tiny, tmp_path / "parts", OPTIMIZER, **({} if _ else {"exit_step": 2})))
    parts = rows_of(tmp_path / "parts")
    assert {n: (r["loss"], r["grad_norm"], r["lr/vision_model"]) for n, r in parts.items()} == {
        n: (r["loss"], r["grad_norm"], r["lr/vision_model"]) for n, r in whole.items()
    }
    ours, theirs = (vet_checkpoint(newest(tmp_path / name), True) for name in ("parts", "whole"))
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert any(key.startswith(AVERAGED) for key in ours.tensors)
    assert any(key.startswith("optimizer.state.momentum_buffer.vision_model.") for key in ours.tensors)
    for key, tensor in ours.tensors.items():
        assert torch.equal(ours.read_rows(key, 0, tensor.size[0]), theirs.read_rows(key, 0, tensor.size[0])), key


def test_a_rate_of_adapters_without_any_is_refused_and_nothing_is_written(tiny, tmp_path):
    with pytest.raises(ConfigError, match="optimizer.adapter_lr is 0.01, but nothing of adapters learns in this run"):
        run(config_of(tiny, tmp_path / "run", {"adapter_lr": 0.01}, epochs=None, train_steps=2))
    assert not list((tmp_path / "run").glob("iter_*"))
