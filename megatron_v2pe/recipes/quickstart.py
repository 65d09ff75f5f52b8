"""The quickstart's run: a small InternVL2 learns real pictures by heart on two processes without a GPU."""

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


def quickstart() -> ExperimentConfig:
    """TP 2 with sequence parallel, fp32 on CPU, a stride drawn per image; what `scripts/quickstart.sh` trains.

    Tiles of 112 pixels become 16 tokens, a sixteenth of InternVL2's 256. The strides are the nine published ones,
    1 to 256, scaled the same way: from 1/16, all of a tile within a sixteenth of a position, to 16, ordinary positions.
    """
    return ExperimentConfig(
        model=ModelConfig(model_name_or_path="work_dirs/quickstart/megatron"),
        v2pe=V2PESettings(
            rope_pos_id_version="v2pe_rnd",
            strides=("1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16"),
        ),
        data=DataConfig(
            meta_path="work_dirs/quickstart/data/meta.json",
            max_seq_length=512,
            max_packed_tokens=1024,
            num_images_expected=32,
            max_buffer_size=4,
            max_dynamic_patch=4,
            loss_reduction="square",
            num_workers=0,
        ),
        parallel=ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
        optimizer=AdamWConfig(lr=1e-3, min_lr=5e-5, warmup_ratio=0.05, adam_beta2=0.99),
        train=TrainConfig(
            train_steps=260, precision="fp32", device="cpu", recompute_granularity=None, recompute_vision=False
        ),
        checkpoint=CheckpointConfig(save="work_dirs/quickstart/run", save_interval=None, keep_latest=2),
    )
