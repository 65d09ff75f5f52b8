"""Where AdamW's state lies and in which types: what reaches Megatron-Core, what memory it is counted as, refusals."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.train.optimizer_step import check_precision_aware

SMALL = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "fp8"}


def test_types_reach_megatron_core_and_the_estimate_of_memory():
    settings = AdamWConfig(**SMALL).megatron_settings()
    assert settings["use_precision_aware_optimizer"] and settings["store_param_remainders"]
    found = tuple(settings[name] for name in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"))
    assert found == (torch.float32, torch.bfloat16, torch.uint8)
    assert AdamWConfig(**SMALL).state_bytes_per_parameter(2) == 2 + 2 + 1
    assert AdamWConfig(**SMALL, main_params_dtype="fp16").megatron_settings()["store_param_remainders"] is False
    plain = AdamWConfig()
    assert "main_params_dtype" not in plain.megatron_settings() and plain.state_bytes_per_parameter(2) == 12
    assert AdamWConfig(ema_decay=0.9).average_bytes == 4 and plain.average_bytes == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"exp_avg_dtype": "bf16"}, "exp_avg_dtype is bf16, which is for the precision-aware state: set"),
        ({**SMALL, "optimizer_cpu_offload": True}, "precision_aware_optimizer and optimizer.optimizer_cpu_offload are"),
        ({**SMALL, "ema_decay": 0.9}, "use_precision_aware_optimizer and optimizer.ema_decay are both set"),
        ({"optimizer_cpu_offload": True, "ema_decay": 0.9}, "ema_decay averages master weights on the card, and"),
    ],
)
def test_settings_that_do_not_go_together(settings, says):
    with pytest.raises(ConfigError, match=says):
        AdamWConfig(**settings).validate()


def test_what_it_needs_is_said_before_the_run(monkeypatch):
    words = ["--recipe", "quickstart", "--optimizer.use-precision-aware-optimizer", "true"]
    with pytest.raises(ConfigError, match="use_precision_aware_optimizer needs train.precision bf16 and para"):
        cli.parse(words, RECIPES).validate()
    with pytest.raises(ConfigError, match="use_precision_aware_optimizer needs a GPU, but train.device is cpu"):
        cli.parse([*words, "--train.precision", "bf16", "--train.device", "cpu"], RECIPES).validate()
    with pytest.raises(ConfigError, match="o.p needs a GPU, but this run is on the CPU"):
        check_precision_aware("o.p", on_cuda=False)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.optimizers", None)
    with pytest.raises(ConfigError, match="o.p needs FusedAdam of Transformer Engine 2.1 or newer, and none is"):
        check_precision_aware("o.p", on_cuda=True)

    def old(params, lr, master_weight_dtype, exp_avg_dtype, exp_avg_sq_dtype, use_decoupled_grad): ...

    def new(
        params, store_param_remainders, master_weight_dtype, exp_avg_dtype, exp_avg_sq_dtype, use_decoupled_grad
    ): ...

    module = types.SimpleNamespace(FusedAdam=old)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.optimizers", module)
    with pytest.raises(ConfigError, match="and one without store_param_remainders is installed here: pip install"):
        check_precision_aware("o.p", on_cuda=True)
    module.FusedAdam = new
    check_precision_aware("o.p", on_cuda=True)
