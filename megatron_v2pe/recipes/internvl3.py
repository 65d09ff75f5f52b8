"""Fine-tuning InternVL3 of 1B, 8B and 38B with V2PE, on packs of 32K and of 128K tokens.

Nobody has published such a run. What is known: InternVL3's report (arXiv 2504.10479) draws a stride for each image
from 1, 1/2, ..., 1/256 of a position for a token, which are the nine of `v2pe_rnd`. Optimizer, packing and tiles are
those of the published V2PE runs of InternVL2-2B, which `internvl2_2b` has. The stochastic depth of the 6B tower, 0.4,
is that of MindSpeed-MM's configurations.

Layouts are for GPUs of 80 GB, GiB are those of one of them. They are chosen by the estimate of memory, which no GPU has
confirmed for these sizes; a test computes what each docstring says (`tests/unit/train/test_family_recipes.py`):

- Tensor parallelism is at most the number of heads of keys and values: 2 of 1B, 4 of 8B, 8 of 38B; it stays in a node.
- Context parallelism comes next, because it divides what a long pack keeps and shares the optimizer's state as well.
- Pipeline stages are not needed: with TP 8 the weights and gradients of 38B are 27 GiB.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.recipes.internvl2_2b import internvl2_2b_v2pe_32k
from megatron_v2pe.train.config import ExperimentConfig

LONG = 131_072
"""Tokens of a pack of the 128K recipes."""
_TILES, _TOKENS = 135, 34_000
"""Most tiles and tokens of a published pack; a longer one keeps their ratio."""


def _run(size: str, layout: ParallelConfig, packs: int, drop_path_rate: float = 0.1) -> ExperimentConfig:
    """Return a run on the 32K mixture from the published checkpoint."""
    base, name = internvl2_2b_v2pe_32k(), f"InternVL3-{size}"
    save = f"work_dirs/internvl3_{size.lower()}_v2pe_32k"
    return replace(
        base,
        model=replace(base.model, model_name_or_path=f"pretrained/{name}", preset=name, drop_path_rate=drop_path_rate),
        data=replace(base.data, template="internvl2_5"),
        parallel=layout,
        train=replace(base.train, global_batch_size=packs),
        checkpoint=replace(base.checkpoint, save=save),
    )


def _longer(base: ExperimentConfig, layout: ParallelConfig, packs: int) -> ExperimentConfig:
    """Return the run that goes on from a 32K run with documents of up to 128K tokens.

    Its packs have 131,072 tokens and as many tiles in proportion; a tenth of the steps, as in `internvl2_2b_v2pe_256k`,
    and as many tokens in a step as in the 32K run.
    """
    assert base.checkpoint.save is not None
    return replace(
        base,
        model=replace(base.model, model_name_or_path=base.checkpoint.save),
        data=replace(
            base.data,
            meta_path="dataset/annotation_train_128k.json",
            max_seq_length=LONG,
            max_packed_tokens=LONG,
            num_images_expected=-(-LONG * _TILES // _TOKENS),
        ),
        parallel=layout,
        train=replace(base.train, train_steps=2000, global_batch_size=packs),
        checkpoint=replace(base.checkpoint, save=base.checkpoint.save.replace("32k", "128k"), save_interval=250),
    )


def internvl3_1b_v2pe_32k() -> ExperimentConfig:
    """InternVL3-1B, packs of 34,000 tokens; DP alone.

    On 8 GPUs: a pack each, 71 GiB. One GPU does the same in 32 turns.
    """
    return _run("1B", ParallelConfig(), packs=32)


def internvl3_1b_v2pe_128k() -> ExperimentConfig:
    """InternVL3-1B, packs of 131,072 tokens; CP 4.

    On 8 GPUs: two packs at a time, 71 GiB. CP 2 fits too, with the tower computed again.
    """
    return _longer(internvl3_1b_v2pe_32k(), ParallelConfig(context_parallel_size=4), packs=8)


def internvl3_8b_v2pe_32k() -> ExperimentConfig:
    """InternVL3-8B, packs of 34,000 tokens; TP 4 with sequence parallelism, all that its four key-value heads allow.

    On 8 GPUs: two packs at a time, 70 GiB, every decoder layer kept whole. TP 1 leaves 7 GiB for activations.
    """
    return _run("8B", ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True), packs=32)


def internvl3_8b_v2pe_128k() -> ExperimentConfig:
    """InternVL3-8B, packs of 131,072 tokens; TP 4 with sequence parallelism, CP 4.

    On 16 GPUs: a pack at a time, 70 GiB, every decoder layer kept whole. 8 GPUs do it with CP 2.
    """
    layout = ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True, context_parallel_size=4)
    return _longer(internvl3_8b_v2pe_32k(), layout, packs=8)


def internvl3_38b_v2pe_32k() -> ExperimentConfig:
    """InternVL3-38B, packs of 34,000 tokens; TP 8 with sequence parallelism, the 25 heads of its tower padded to 32.

    On 32 GPUs: four packs at a time, 71 GiB, half of the decoder's layers kept whole. 16 GPUs are the fewest: on 8 the
    optimizer's state alone is 54 GiB.
    """
    layout = ParallelConfig(tensor_model_parallel_size=8, sequence_parallel=True)
    return _run("38B", layout, packs=32, drop_path_rate=0.4)


def internvl3_38b_v2pe_128k() -> ExperimentConfig:
    """InternVL3-38B, packs of 131,072 tokens; TP 8 with sequence parallelism, CP 4.

    On 32 GPUs: a pack at a time, 71 GiB, half of the decoder's layers kept whole. With CP 8, 64 GPUs keep all of them.
    """
    layout = ParallelConfig(tensor_model_parallel_size=8, sequence_parallel=True, context_parallel_size=4)
    return _longer(internvl3_38b_v2pe_32k(), layout, packs=8)
