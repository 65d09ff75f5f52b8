"""Converted checkpoints loaded into a model of some layout and saved from there; for use inside a `WorkerPool`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.checkpoint import store
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built


def resave(cases: list[tuple[str, str, dict[str, Any]]], layout: ParallelConfig) -> None:
    """Load each checkpoint into a model of the layout and save it as a training run does, after a step of rate 0.

    Args:
        cases: for each, the folder of the converted checkpoint, the folder of the run, and the `config.json`.
        layout: of the model.
    """
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.optimizer_step import build_optimizer, take_step

    for source, target, hf_config in cases:
        options = ModelOptions(params_dtype=torch.bfloat16)
        with built(hf_config, layout, options, StridePolicy("default"), 0) as model:
            with torch.no_grad():
                for parameter in model.parameters():  # what a load leaves out shows
                    parameter.fill_(float("nan"))
            store.load_model(Path(source), model)
            groups = ProcessGroupCollection.use_mpu_process_groups()
            wrapped = wrap(model, layout, groups, torch.device("cpu"))
            optimizer = build_optimizer(wrapped, AdamWConfig(), torch.bfloat16, True, False, groups)
            wrapped.zero_grad_buffer()
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            take_step(optimizer)  # the optimizer has no state to save before its first step
            state = store.TrainingState(1, {}, {})
            store.save(Path(target), model, optimizer, state, hf_source=Path(source))
