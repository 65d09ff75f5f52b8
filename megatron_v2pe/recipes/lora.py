"""Fine-tuning with adapters of low rank on the language model, on the 32K mixture with V2PE.

Rank 16, alpha 32, dropout 0.05 on attention and MLP of every decoder layer is what the published code makes of
`--use_llm_lora 16`; tower and projector stay as they are. Nobody has published a run of V2PE with adapters: packs,
tiles and positions are those of the published V2PE run, the learning rate of 4e-5 is a usual one for adapters and no
more than a place to begin. GiB are of one GPU of 80 GB, by the estimate of memory, which
`tests/unit/train/test_family_recipes.py` computes; no GPU has run these.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_v2pe.recipes.internvl2_2b import internvl2_2b_v2pe_32k
from megatron_v2pe.recipes.internvl3 import internvl3_8b_v2pe_32k
from megatron_v2pe.train.adapter_settings import AdapterSettings
from megatron_v2pe.train.config import ExperimentConfig


def _adapted(base: ExperimentConfig, preset: str, save: str) -> ExperimentConfig:
    """Return a run that trains adapters on the language model and nothing else."""
    return replace(
        base,
        model=replace(base.model, preset=preset, freeze_backbone=True, freeze_mlp=True),
        adapter=AdapterSettings(kind="lora", llm_rank=16, dropout=0.05),
        optimizer=replace(base.optimizer, lr=4e-5),
        train=replace(base.train, train_steps=2000),
        checkpoint=replace(base.checkpoint, save=f"work_dirs/{save}", save_interval=250),
    )


def internvl2_2b_lora_32k() -> ExperimentConfig:
    """InternVL2-2B, adapters of rank 16, packs of 34,000 tokens; DP alone.

    On 8 GPUs: a pack each, 70 GiB, nothing computed again. One GPU does the same in 32 turns.
    """
    return _adapted(internvl2_2b_v2pe_32k(), "InternVL2-2B", "internvl2_2b_lora_32k")


def internvl3_8b_lora_32k() -> ExperimentConfig:
    """InternVL3-8B, adapters of rank 16, packs of 34,000 tokens; DP alone, for nothing of the frozen model has state.

    On 8 GPUs: a pack each, 69 GiB, a quarter of the decoder's layers kept whole. One GPU does the same in 32 turns.
    """
    base = internvl3_8b_v2pe_32k()
    layout = replace(base.parallel, tensor_model_parallel_size=1, sequence_parallel=False)
    return _adapted(replace(base, parallel=layout), "InternVL3-8B", "internvl3_8b_lora_32k")
