"""A step's floating-point operations: the formula beside PyTorch's counter, and beside numbers from a real card."""

from __future__ import annotations

import json

import pytest

from helpers import counted_flops, parity
from helpers.packs import random_packs
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import Learning, StepCost
from megatron_v2pe.models.presets import preset_config
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

POLICY = StridePolicy("v2pe_fix", 1)
FROZEN = {
    "nothing": {},
    "tower": {"backbone": True},
    "tower but its last two layers": {"backbone": True, "unfreeze_vit_layers": -2},
    "tower and projector": {"backbone": True, "projector": True},
    "decoder": {"llm": True},
    "decoder and tower": {"llm": True, "backbone": True},
    "all but new tokens": {"llm": True, "backbone": True, "projector": True, "tables": True},
}


@pytest.fixture(scope="module")
def config(golden):
    return json.loads((golden / "reference_checkpoint" / "config.json").read_text())


@pytest.fixture(scope="module")
def weights(pools, config):
    return drawn(pools, config)


def drawn(pools, config):
    return {name: tensor.float() for name, tensor in pools[1].run(parity.random_weights, hf_config=config)[0].items()}


def counted(pools, config, weights, frozen):
    case = parity.Case(
        hf_config=config,
        layout=ParallelConfig(),
        packs=random_packs(config, POLICY, "mixed")[:1],
        weights=weights,
        image_token_id=505,
        policy=POLICY,
        options={"recompute_vision": False, "head_chunk_size": 10_000},
        frozen=frozen,
    )
    return case.packs[0], pools[1].run(counted_flops.count, case=case)[0]


def expected(config, pack, frozen):
    learning = Learning(
        backbone=not frozen.get("backbone"),
        llm=not frozen.get("llm"),
        projector=not frozen.get("projector"),
        unfreeze_vit_layers=frozen.get("unfreeze_vit_layers", 0),
        tables=frozen.get("tables", False),
    )
    model = InternVLConfig.from_hf(config)
    cost = StepCost.of(model, learning)
    squares, tiles = sum(length**2 for length in pack.seqlens), pack.pixel_values.shape[0]
    padded = StepCost(cost.per_token, 0, 0, cost.per_supervised * model.llm.padded_vocab_size / model.llm.vocab_size)
    return cost, squares, tiles, padded


@pytest.mark.parametrize("name", FROZEN)
def test_as_pytorch_counts(pools, config, weights, name):
    """Equal to the operation: the counter sees the padded columns of the head, which are taken into account here."""
    pack, found = counted(pools, config, weights, FROZEN[name])
    cost, squares, tiles, padded = expected(config, pack, FROZEN[name])
    supervised = int((pack.labels != -100).sum())
    language = padded.flop(len(pack.input_ids), 0, 0, supervised)
    ours = language + cost.flop(0, 0, tiles, 0) + cost.flop(0, squares, 0, 0)
    theirs = found.products + found.causal + found.full
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert cost.flop(0, squares, 0, 0) == pytest.approx(found.causal, rel=1e-9)


@pytest.mark.parametrize("name", ["nothing", "tower but its last two layers", "decoder"])
def test_qwen3_and_the_6b_tower_as_pytorch_counts(pools, config, name):
    """Heads together wider than hidden states; norms of queries and keys count nothing."""
    published = preset_config("InternVL3_5-38B")
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    llm = published["llm_config"] | {part: config["llm_config"][part] for part in (*sizes, "vocab_size")}
    llm |= {"num_key_value_heads": config["llm_config"]["num_key_value_heads"], "head_dim": 24}
    tower = {part: config["vision_config"][part] for part in (*sizes, "image_size", "patch_size")}
    large = config | {"llm_config": llm, "vision_config": published["vision_config"] | tower}
    pack, found = counted(pools, large, drawn(pools, large), FROZEN[name])
    cost, squares, tiles, padded = expected(large, pack, FROZEN[name])
    supervised = int((pack.labels != -100).sum())
    ours = padded.flop(len(pack.input_ids), 0, 0, supervised) + cost.flop(0, squares, tiles, 0)
    assert ours == pytest.approx(found.products + found.causal + found.full, rel=1e-9)


def test_a_frozen_part_that_is_counted_as_learning_is_seen(pools, config, weights):
    pack, found = counted(pools, config, weights, FROZEN["tower"])
    cost, squares, tiles, padded = expected(config, pack, {})
    ours = padded.flop(len(pack.input_ids), 0, 0, int((pack.labels != -100).sum())) + cost.flop(0, squares, tiles, 0)
    assert ours > 1.05 * (found.products + found.causal + found.full)


def test_the_documents_that_were_measured():
    """InternVL2-2B: 33,375 tokens in one document with 130 tiles were counted by hand as 911 TFLOP."""
    cost = StepCost.of(InternVLConfig.from_hf(internvl2_2b_config()))
    one = cost.flop(33_375, 33_375**2, 130, 100) / 1e12
    assert one == pytest.approx(911, rel=0.01)  # 915.5: the count by hand leaves out projector and patch embedding
    assert cost.per_token == pytest.approx(6 * 1.51e9, rel=1e-3)
    assert cost.per_square == 3 * 2 * 2048 * 24
    assert cost.per_supervised == 6 * 2048 * 92_553
    tower = 3 * 2 * 0.302e9 * 1025 + 3 * 4 * 1025**2 * 1024 * 24
    assert cost.per_tile == pytest.approx(tower, rel=0.015)
    pack = [33_999 // 30] * 30  # a mixed pack has about a third less: attention is quadratic
    mixed = cost.flop(sum(pack), sum(length**2 for length in pack), 125, 3000) / 1e12
    assert mixed == pytest.approx(600, rel=0.03)


def test_what_learns_of_the_tower():
    assert Learning(backbone=False).tower_layers(3) == [False] * 3
    assert Learning(backbone=False, unfreeze_vit_layers=-1).tower_layers(3) == [False, False, True]
    assert Learning(backbone=False, unfreeze_vit_layers=1).tower_layers(3) == [False, True, True]
    assert Learning().tower_layers(2) == [True, True]


def test_longer_documents_cost_more_than_many():
    cost = StepCost.of(InternVLConfig.from_hf(internvl2_2b_config()))
    assert cost.flop(1000, 1000**2, 0, 0) > cost.flop(1000, 10 * 100**2, 0, 0)
