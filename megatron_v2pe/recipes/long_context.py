"""The long-context example's run: long multi-image documents, each shared by two processes without a GPU."""

from __future__ import annotations

from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import (
    AdamWConfig,
    CheckpointConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)
from megatron_v2pe.v2pe.settings import V2PESettings


def long_context() -> ExperimentConfig:
    """CP 2 (ring), fp32 on CPU, a stride drawn per image; what `examples/long_context/run.sh` trains.

    A pack is one document of up to 8,192 tokens. Layers are computed again in backward, attention is not: its output
    is kept. Strides are the nine published ones at the quickstart's 16 tokens a tile, see `quickstart`.
    """
    return ExperimentConfig(
        model=ModelConfig(model_name_or_path="work_dirs/long_context/megatron"),
        v2pe=V2PESettings(
            rope_pos_id_version="v2pe_rnd",
            strides=("1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16"),
        ),
        data=DataConfig(
            meta_path="work_dirs/long_context/data/meta.json",
            max_seq_length=8192,
            max_packed_tokens=8192,
            num_images_expected=512,  # all a pack could hold at 16 tokens a tile
            max_buffer_size=1,
            max_dynamic_patch=1,
            loss_reduction="square",
            num_workers=0,
        ),
        parallel=ParallelConfig(context_parallel_size=2),
        optimizer=AdamWConfig(lr=1e-3, min_lr=1e-4, warmup_ratio=0.25, adam_beta2=0.99),
        train=TrainConfig(train_steps=24, precision="fp32", device="cpu", recompute_attention=False),
        checkpoint=CheckpointConfig(save="work_dirs/long_context/run", save_interval=None, keep_latest=1),
    )
