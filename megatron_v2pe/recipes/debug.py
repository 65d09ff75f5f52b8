"""Small runs for two processes without a GPU."""

from __future__ import annotations

from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.train.config import (
    AdamWConfig,
    CheckpointConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)
from megatron_v2pe.v2pe.settings import V2PESettings


def debug() -> ExperimentConfig:
    """Ten steps in fp32 on CPU with short packs: name a small checkpoint and a data list."""
    return ExperimentConfig(
        model=ModelConfig(model_name_or_path="work_dirs/debug/model"),
        v2pe=V2PESettings(rope_pos_id_version="v2pe_rnd"),
        data=DataConfig(
            meta_path="work_dirs/debug/meta.json",
            max_seq_length=2048,
            max_packed_tokens=2048,
            num_images_expected=16,
            max_buffer_size=4,
            num_workers=0,
        ),
        optimizer=AdamWConfig(lr=1e-4),
        train=TrainConfig(train_steps=10, precision="fp32", device="cpu"),
        checkpoint=CheckpointConfig(save="work_dirs/debug/run", save_interval=5, keep_latest=2),
    )
