"""The estimate of a rank's memory, held against parameters of built models and every tensor of steps on the CPU.

Over all cases below what is kept was within 5% and, in one process, within 0.5% of what was counted; the worst moment
was between 0.2% below and 9% above. A term that is forgotten or doubled is seen.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import lora, step_memory
from megatron_v2pe.models import memory
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import Learning
from megatron_v2pe.models.memory import GIB, Load, Numbers, estimate
from megatron_v2pe.models.presets import preset_config
from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

ONE = ParallelConfig(use_distributed_optimizer=False)
LAYOUTS = {
    "tp2": replace(ONE, tensor_model_parallel_size=2),
    "tp2_sp": replace(ONE, tensor_model_parallel_size=2, sequence_parallel=True),
    "tp2_replicated_vision": replace(ONE, tensor_model_parallel_size=2, vision_parallel="replicated"),
    "cp2": replace(ONE, context_parallel_size=2),
    "cp2_a2a": replace(ONE, context_parallel_size=2, cp_comm_type="a2a"),
    "pp2": replace(ONE, pipeline_model_parallel_size=2),
}
NOTHING_AGAIN, ALL_AGAIN, MIXED = RecomputePlan(0), RecomputePlan(4, 0, 3), RecomputePlan(2, 1, 1)
TILE_BY_TILE = RecomputePlan(4, 4, tower_tiles=1)
KEPT_WITHIN, PEAK_BELOW, PEAK_ABOVE = 0.06, 0.01, 0.10


def hf_config():
    """Four decoder layers of 128, three of the tower of 64: activations far larger than any gradient of a weight."""
    config = internvl2_2b_config()
    config["llm_config"] |= {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "vocab_size": 1000,
    }
    config["vision_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    return config


def qwen3_config():
    """The same sizes with Qwen3 (heads together wider than hidden states, norms on queries and keys) and a 6B tower."""
    config, published = hf_config(), preset_config("InternVL3_5-38B")
    sizes = {name: config["llm_config"][name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48, "vocab_size": 1000}
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 3}
    llm, vision = published["llm_config"] | sizes | heads, published["vision_config"] | tower
    return config | {"llm_config": llm, "vision_config": vision}


@pytest.fixture(scope="module")
def measured(pools):
    found = {}

    def measure(layout, plan, load, chunk, frozen=(), config=hf_config):
        key = (layout, plan, load, chunk, frozen, config)
        if key not in found:
            found[key] = pools[layout.model_parallel_size].run(
                step_memory.run,
                hf_config=config(),
                layout=layout,
                options=ModelOptions(recompute_plan=plan, mlp_chunk_tokens=chunk),
                tokens=load.tokens,
                tiles=load.tiles,
                supervised=load.supervised,
                micro_batches=load.micro_batches,
                frozen=dict.fromkeys(frozen, True),
            )
        return found[key]

    return measure


def estimated(layout, plan, load, chunk, stage=0, learning=None, config=hf_config):
    numbers = Numbers(itemsize=4, mlp_chunk=chunk, norm_copies=2, optimizer_bytes=8)
    return estimate(InternVLConfig.from_hf(config()), layout, stage, 1, load, plan, numbers, learning)


def wrong(ours, theirs, kept_within=KEPT_WITHIN):
    """Say what of an estimate is too far from what was counted on the ranks of a stage."""
    kept, peak = max(rank.kept for rank in theirs), max(rank.peak for rank in theirs)
    found = []
    if abs(ours.kept / kept - 1) > kept_within:
        found.append(f"kept {ours.kept / kept:.3f} of what was counted")
    if not -PEAK_BELOW < ours.activations / peak - 1 < PEAK_ABOVE:
        found.append(f"peak {ours.activations / peak:.3f} of what was counted")
    return found


@pytest.mark.parametrize(
    ("plan", "chunk"),
    [(NOTHING_AGAIN, None), (ALL_AGAIN, None), (TILE_BY_TILE, None), (MIXED, 300), (ALL_AGAIN, 300), (MIXED, 1024)],
    ids=str,
)
def test_one_process(measured, plan, chunk):
    load = Load(tokens=1600, tiles=4, supervised=60)
    theirs = measured(ONE, plan, load, chunk)
    assert wrong(estimated(ONE, plan, load, chunk), theirs, kept_within=0.006) == []


@pytest.mark.parametrize(
    ("plan", "chunk"), [(NOTHING_AGAIN, None), (ALL_AGAIN, None), (MIXED, 300), (TILE_BY_TILE, None)], ids=str
)
def test_norms_of_queries_and_keys(measured, plan, chunk):
    load = Load(tokens=1600, tiles=4, supervised=60)
    theirs = measured(ONE, plan, load, chunk, config=qwen3_config)
    ours = estimated(ONE, plan, load, chunk, config=qwen3_config)
    assert wrong(ours, theirs, kept_within=0.006) == []  # 0.2% was measured; without the norms 22% are missing
    assert ours.weights == 4 * theirs[0].parameters


@pytest.mark.parametrize("name", LAYOUTS)
def test_norms_of_queries_and_keys_in_layouts(measured, name):
    layout, load = LAYOUTS[name], Load(tokens=1600, tiles=4, supervised=60)
    theirs = measured(layout, MIXED, load, 1024, config=qwen3_config)
    for stage in range(layout.pipeline_model_parallel_size):
        rank = theirs[stage : stage + 1] if layout.pipeline_model_parallel_size > 1 else theirs
        ours = estimated(layout, MIXED, load, 1024, stage, config=qwen3_config)
        assert wrong(ours, rank) == []
        assert ours.weights == 4 * rank[0].parameters


@pytest.mark.parametrize("load", [Load(1300, 0, 40), Load(1600, 4, 1600), Load(600, 2, 10)], ids=str)
def test_other_packs(measured, load):
    """Text alone, all tokens supervised (the head is the worst moment), more tower than decoder."""
    for plan in (NOTHING_AGAIN, TILE_BY_TILE):
        ours = estimated(ONE, plan, load, None)
        assert wrong(ours, measured(ONE, plan, load, None), kept_within=0.006) == []


@pytest.mark.parametrize(("name", "plan"), [*((name, MIXED) for name in LAYOUTS), ("tp2_sp", TILE_BY_TILE)], ids=str)
def test_layouts(measured, name, plan):
    layout, load = LAYOUTS[name], Load(tokens=1600, tiles=4, supervised=60)
    theirs = measured(layout, plan, load, 1024)
    if name != "pp2":
        assert wrong(estimated(layout, plan, load, 1024), theirs) == []
        return
    for stage in range(2):
        assert wrong(estimated(layout, plan, load, 1024, stage), theirs[stage : stage + 1]) == []


def test_packs_in_flight(measured):
    """The first of two stages holds the activations of two packs when it begins to go back."""
    layout, load = LAYOUTS["pp2"], Load(1600, 4, 60, micro_batches=3)
    theirs = measured(layout, NOTHING_AGAIN, load, 1024)
    for stage in range(2):
        assert wrong(estimated(layout, NOTHING_AGAIN, load, 1024, stage), theirs[stage : stage + 1]) == []
    single = estimated(layout, NOTHING_AGAIN, replace(load, micro_batches=1), 1024)
    assert wrong(single, theirs[:1]) != []


@pytest.mark.parametrize(
    ("name", "value"), [("SWIGLU_WORKING", 2), ("SWIGLU_WORKING", 9), ("TOWER_HIDDEN", 5), ("TOWER_HIDDEN", 7)]
)
def test_a_wrong_count_is_seen(measured, monkeypatch, name, value):
    load = Load(tokens=1600, tiles=4, supervised=60)
    theirs = [measured(ONE, plan, load, None) for plan in (NOTHING_AGAIN, ALL_AGAIN, TILE_BY_TILE)]
    monkeypatch.setattr(memory, name, value)
    ours = [estimated(ONE, plan, load, None) for plan in (NOTHING_AGAIN, ALL_AGAIN, TILE_BY_TILE)]
    assert any(wrong(one, other, kept_within=0.006) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["one", *LAYOUTS])
def test_parameters_are_those_of_the_built_model(measured, name):
    layout, load = LAYOUTS.get(name, ONE), Load(1600, 4, 60)
    for rank, theirs in enumerate(measured(layout, MIXED, load, 1024)):
        ours = estimated(layout, MIXED, load, 1024, stage=rank if name == "pp2" else 0)
        assert ours.weights == 4 * theirs.parameters and ours.gradients == 4 * theirs.learning
        assert ours.optimizer == 8 * theirs.learning  # moments; in fp32 the weights are their own masters


@pytest.mark.parametrize("frozen", [("backbone",), ("llm",), ("projector",), ("backbone", "llm")])
def test_what_is_frozen_has_neither_gradients_nor_state(measured, frozen):
    load = Load(600, 2, 10)
    (theirs,) = measured(ONE, MIXED, load, 1024, frozen)
    ours = estimated(ONE, MIXED, load, 1024, learning=Learning(**{part: part not in frozen for part in
                                                                  ("backbone", "llm", "projector")}))  # fmt: skip
    assert ours.weights == 4 * theirs.parameters
    assert ours.gradients == 4 * theirs.learning < 4 * theirs.parameters


@pytest.mark.parametrize("plan", [NOTHING_AGAIN, TILE_BY_TILE], ids=str)
def test_of_a_frozen_tower_nothing_is_kept(measured, plan):
    """Tiles are not encoded a second time for a projector that learns: what it was given is kept."""
    load = Load(1600, 4, 60)
    theirs = measured(ONE, plan, load, None, ("backbone",))
    ours = estimated(ONE, plan, load, None, learning=Learning(backbone=False))
    assert wrong(ours, theirs, kept_within=0.006) == []


def full_size(load, plan, layout=None, ranks=1, **numbers):
    model = InternVLConfig.from_hf(internvl2_2b_config())
    return estimate(model, layout or ParallelConfig(), 0, ranks, load, plan, Numbers(**numbers))


def test_the_full_size_model_agrees_with_a_gpu():
    """33,375 tokens with 130 tiles on one GPU took 51.8 GiB before layers kept less; now an estimate, not measured."""
    found = full_size(Load(33375, 130, 2000), RecomputePlan(24, 0, 24))
    assert 48 < found.total / GIB < 52
    assert found.weights + found.gradients + found.optimizer == 18 * 2_206_241_792


def test_one_document_of_130_000_tokens_with_507_tiles_fits_80_gib():
    load = Load(130_000, 507, 130_000)
    layer_by_layer = full_size(load, RecomputePlan(24, 0, 24))
    assert layer_by_layer.total > 80 * GIB  # the tower's inputs alone are 24 GiB
    assert full_size(load, RecomputePlan(24, 0, tower_tiles=memory.TOWER_TILES)).total < 62 * GIB
    assert full_size(load, RecomputePlan(24, 24, tower_tiles=memory.TOWER_TILES)).total < 74 * GIB


def test_shares_of_the_optimizer():
    load, plan = Load(33375, 130, 2000), RecomputePlan(24, 0, 24)
    alone, eight = full_size(load, plan), full_size(load, plan, ranks=8)
    assert eight.optimizer == alone.optimizer // 8 and eight.gradients == alone.gradients
    ring = full_size(load, plan, ParallelConfig(context_parallel_size=4), ranks=2)
    assert ring.optimizer == eight.optimizer  # ranks that share a pack share it too
    assert full_size(load, plan, offloaded=0.5).optimizer == alone.optimizer // 2
    whole = full_size(load, plan, ParallelConfig(use_distributed_optimizer=False), ranks=8)
    assert whole.optimizer == alone.optimizer


LINEARS = {part: (f"{part}.attention", f"{part}.mlp") for part in ("language_model", "vision_model")}
ADAPTED = {
    "decoder": LINEARS["language_model"],
    "decoder and tower": LINEARS["language_model"] + LINEARS["vision_model"] + ("vision_projection.mlp",),
    "attention alone": ("language_model.attention",),
}


def with_adapters(pools, config, targets, plan, load, dtype, chunk=None):
    """Measure a step of a frozen model with adapters on one process, and estimate it: peak activations, and all."""
    adapters = lora.plan_of_config(config, targets, rank=16, alpha=32.0)
    found = pools[1].run(
        step_memory.run,
        hf_config=config,
        layout=ONE,
        options=ModelOptions(params_dtype=dtype, recompute_plan=plan, mlp_chunk_tokens=chunk),
        tokens=load.tokens,
        tiles=load.tiles,
        supervised=load.supervised,
        frozen={"backbone": True, "llm": True, "projector": True},
        adapters=adapters,
    )[0]
    numbers = Numbers(itemsize=dtype.itemsize, mlp_chunk=chunk, norm_copies=2)
    learning = Learning(backbone=False, llm=False, projector=False, adapters=adapters)
    expected = estimate(InternVLConfig.from_hf(config), ONE, 0, 1, load, plan, numbers, learning)
    factors, weights = found.learning, found.parameters - found.learning
    assert (expected.weights, expected.gradients, expected.optimizer) == (
        weights * dtype.itemsize + 4 * factors,
        4 * factors,
        8 * factors,
    )
    counted = expected.weights + expected.gradients + expected.optimizer + found.peak
    return expected.activations / found.peak - 1, expected.total / counted - 1


@pytest.mark.parametrize("targets", ADAPTED)
def test_adapters(pools, targets):
    """Measured: the worst moment's activations between 1.9% below and 2.7% above what was counted."""
    for plan in (NOTHING_AGAIN, ALL_AGAIN, MIXED):
        off, _ = with_adapters(pools, hf_config(), ADAPTED[targets], plan, Load(1024, 4, 256), torch.float32)
        assert abs(off) < 0.05, (plan, off)


@pytest.mark.exhaustive
@pytest.mark.parametrize("targets", ["decoder", "decoder and tower"])
def test_adapters_at_the_widths_of_2b(pools, targets):
    """Three layers of each kind, bf16. Measured: activations within 3.1%, all bytes of the step within 2%."""
    config = internvl2_2b_config()
    config["llm_config"]["num_hidden_layers"] = config["vision_config"]["num_hidden_layers"] = 3
    for plan in (RecomputePlan(3, 0, 3), NOTHING_AGAIN):
        off, total = with_adapters(
            pools, config, ADAPTED[targets], plan, Load(2048, 4, 1024), torch.bfloat16, chunk=16384
        )
        assert max(abs(off), abs(total)) < 0.05, (plan, off, total)


@pytest.mark.exhaustive
def test_adapters_on_all_layers_of_2b(pools, monkeypatch):
    """InternVL2-2B whole, bf16, LoRA of rank 16 on all linears of the decoder, 384 tokens with one picture.

    Measured: all bytes of the step 1.5% above the estimate; activations alone, few in so short a pack, 8.9%.
    """
    monkeypatch.setattr(pools[1], "timeout_seconds", 3600.0)
    off, total = with_adapters(
        pools, internvl2_2b_config(), ADAPTED["decoder"], NOTHING_AGAIN, Load(384, 1, 128), torch.bfloat16, chunk=16384
    )
    assert abs(total) < 0.05 and abs(off) < 0.10, (off, total)
