"""Qwen2 and Qwen3 in parallel: norms of queries and keys, biases, tied embeddings, heads wider than the hidden size.

What is special to them: of a norm's weight, every tensor-parallel rank sees the gradient of its own heads alone; a tied
weight lies on the first and on the last pipeline stage, and each sees a part of its gradient. All layouts are held
against one process, in float64, and a planted break is seen. Packs have images of several strides.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from helpers import generation, parity, short_runs
from helpers.packs import IMG_CONTEXT, random_packs
from megatron_v2pe.checkpoint.folder import newest
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy

TOLERANCE = 2e-12  # float64; measured 1.3e-16 of the loss, 8e-15 of gradients, 3e-15 of logits
BREAK_IS_SEEN_ABOVE = 1e-3
SECTIONS = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_attention_heads": 8},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_attention_heads": 4, "head_dim": 32},
}
SIZES = {"hidden_size": 64, "num_key_value_heads": 2, "num_hidden_layers": 4, "intermediate_size": 96,
         "vocab_size": 509, "max_position_embeddings": 256, "rope_theta": 1e6}  # fmt: skip
POLICY = StridePolicy("v2pe_rnd", seed=3)
SETTINGS = AdamWConfig(lr=0.1, warmup_ratio=0.0, weight_decay=0.1, adam_eps=1.0)
"""An epsilon so large that updates follow the gradients' size; as usual Adam makes whole steps of their rounding."""
TP2_SP = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
LAYOUTS = {
    "tp2": (2, ParallelConfig(tensor_model_parallel_size=2, use_distributed_optimizer=False)),
    "tp2_sp": (2, TP2_SP),
    "pp2": (2, PP2),
    "pp2_plain": (2, replace(PP2, use_distributed_optimizer=False)),
    "cp2": (2, ParallelConfig(context_parallel_size=2)),
    "tp2_pp2_sp": (4, replace(TP2_SP, pipeline_model_parallel_size=2)),
    "pp2_dp2_overlap": (4, replace(PP2, overlap_grad_reduce=True, overlap_param_gather=True)),
    "pp2_cp2": (4, replace(PP2, context_parallel_size=2)),
    "pp4": (4, ParallelConfig(pipeline_model_parallel_size=4)),
}


@pytest.fixture(scope="module")
def golden_config(golden):
    return json.loads((golden / "reference_checkpoint" / "config.json").read_text())


@pytest.fixture(scope="module")
def case(golden_config, pools):
    """A step of one of the models, tied or not; its weights are drawn once."""
    known = {}

    def make(kind, tied, tower=None, **options):
        if (kind, tied, str(tower)) not in known:
            config = {**golden_config, "llm_config": {**SIZES, **SECTIONS[kind], "tie_word_embeddings": tied}}
            config["vision_config"] = {**config["vision_config"], **(tower or {})}
            weights = pools[1].run(parity.random_weights, hf_config=config)[0]
            assert ("language_model.output_layer.weight" in weights) is not tied
            assert ("language_model.decoder.layers.0.self_attention.q_layernorm.weight" in weights) is (kind == "qwen3")
            known[kind, tied, str(tower)] = config, random_packs(config, POLICY, "mixed"), weights
        config, packs, weights = known[kind, tied, str(tower)]
        return parity.Case(config, ParallelConfig(), packs, weights, IMG_CONTEXT, POLICY, torch.float64, options)

    return make


@pytest.fixture(scope="module")
def errors(pools, case):
    """Errors of a model in a layout against one process, which is run once per model."""
    singles = {}

    def run(kind, tied, name, planted_break=None, **options):
        this = case(kind, tied, **options)
        key = kind, tied, str(options)
        if key not in singles:
            singles[key] = pools[1].run(parity.run, case=this)[0]
        world, layout = LAYOUTS[name]
        other = pools[world].run(parity.run, case=replace(this, layout=layout, planted_break=planted_break))[0]
        return parity.compare(singles[key], other)

    return run


@pytest.mark.parametrize(
    ("kind", "tied", "name"),
    [
        ("qwen3", False, "tp2"),
        ("qwen3", True, "tp2_sp"),
        ("qwen2", True, "pp2"),
        ("qwen3", True, "pp2_plain"),
        ("qwen2", True, "cp2"),
        ("qwen3", True, "tp2_pp2_sp"),
        ("qwen2", True, "pp2_dp2_overlap"),
        ("qwen3", True, "pp2_cp2"),
        ("qwen2", True, "pp4"),
    ],
)
def test_a_layout_equals_one_process(errors, kind, tied, name):
    found = errors(kind, tied, name)
    assert max(found["loss"], found["logits"], found["gradients"]) <= TOLERANCE, found


def test_norms_of_a_tower_are_none_of_heads(errors):
    """InternVL3.5-38B: the 6B tower's norms of queries and keys are cut over the ranks, Qwen3's are not."""
    tower = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
    found = errors("qwen3", False, "tp2_sp", tower=tower)
    assert max(found["loss"], found["logits"], found["gradients"]) <= TOLERANCE, found


@pytest.mark.parametrize(
    ("name", "planted_break"),
    [
        ("tp2", "head_norm_reduction"),
        ("tp2_sp", "head_norm_reduction"),
        ("pp2", "tied_reduction"),
        ("pp4", "tied_reduction"),
    ],
)
def test_a_planted_break_is_seen(errors, name, planted_break):
    try:
        found = errors("qwen3", True, name, planted_break)
    except AssertionError as error:  # two ranks that hold one tensor have different gradients of it
        assert "replicas at offset" in str(error)
    else:
        assert max(found["loss"], found["logits"], found["gradients"]) > BREAK_IS_SEEN_ABOVE, found


def test_recompute_changes_nothing(errors):
    options = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    found = errors("qwen3", True, "tp2_pp2_sp", **options)
    assert max(found["loss"], found["logits"], found["gradients"]) <= TOLERANCE, found


@pytest.fixture(scope="module")
def train(pools, case):
    """Train the tied Qwen3 on in a layout, in float32."""

    def run(name, steps, **places):
        world, layout = (1, ParallelConfig()) if name is None else LAYOUTS[name]
        this = case("qwen3", True)
        weights = {key: tensor.float() for key, tensor in this.weights.items()}
        this = replace(this, layout=layout, dtype=torch.float32, weights=weights)
        places = {key: str(value) for key, value in places.items()}
        return pools[world].run(short_runs.train, case=this, steps=steps, settings=SETTINGS, **places)[0]

    return run


def test_a_tied_run_is_stored_once_and_goes_on_in_any_layout(train, golden, tmp_path):
    """To the bit in its own layout; norms of gradients count a tied weight, and a norm of heads, once."""
    shutil.copytree(golden / "reference_checkpoint", tmp_path / "hf")
    train("tp2_pp2_sp", 2, save_to=tmp_path)
    stored = vet_checkpoint(newest(tmp_path)).tensors
    assert "language_model.embedding.word_embeddings.weight" in stored
    assert not [key for key in stored if "output_layer" in key]
    whole, resumed = train("tp2_pp2_sp", 4), train("tp2_pp2_sp", 2, resume_from=tmp_path)
    assert resumed.losses == whole.losses[2:] and resumed.grad_norms == whole.grad_norms[2:]
    assert all(torch.equal(tensor, resumed.weights[key]) for key, tensor in whole.weights.items())
    single = train(None, 4)
    assert single.losses == pytest.approx(whole.losses, rel=1e-6)  # measured 4e-8
    assert single.grad_norms == pytest.approx(whole.grad_norms, rel=1e-6)  # measured 1.5e-7
    for name in (None, "pp2_dp2_overlap"):
        other = train(name, 2, resume_from=tmp_path)
        assert other.losses == pytest.approx(whole.losses[2:], rel=1e-6)
        assert other.grad_norms == pytest.approx(whole.grad_norms[2:], rel=1e-6)


@pytest.fixture(scope="module")
def answers(pools, golden_config, case):
    """Answers of a model in a layout, and the error of their logits against whole forward passes."""

    def run(kind, tied, world, layout, static=False):
        this = case(kind, tied)
        policy = StridePolicy("v2pe_fix", Fraction(1, 4))
        packs = random_packs(this.hf_config, policy, "many_documents")[1:3]
        denominator = policy.denominator(InternVLConfig.from_hf(this.hf_config).tokens_per_tile)
        asked = generation.Case(
            this.hf_config, this.weights, [_prompt(pack, denominator) for pack in packs], IMG_CONTEXT, policy=policy,
            options=GenerationOptions(max_new_tokens=5), prefill_tokens=11, static=static,
        )  # fmt: skip
        found = pools[world].run(generation.run, case=replace(asked, layout=layout))[-1]
        whole = pools[1].run(generation.recomputed, case=asked, ids=found.ids)[0]
        return generation.relative_error(whole, found.logits), found

    return run


def _prompt(pack, denominator):
    offset, parts = 0, []
    for ticks in pack.position_ticks.values.split(pack.seqlens):
        parts.append(ticks + offset)
        offset += int(ticks[-1]) + denominator
    return Prompt(pack.input_ids, Ticks(torch.cat(parts), denominator), pack.pixel_values, (len(pack.pixel_values),))


@pytest.mark.parametrize(
    ("kind", "tied", "world", "layout", "static"),
    [
        ("qwen3", True, 1, ParallelConfig(), False),
        ("qwen3", False, 1, ParallelConfig(), True),
        ("qwen2", True, 1, ParallelConfig(), True),
        ("qwen3", True, 2, ParallelConfig(tensor_model_parallel_size=2), False),
        ("qwen2", True, 2, PP2, False),
        ("qwen3", True, 2, ParallelConfig(context_parallel_size=2), False),
    ],
)
def test_cache_equals_recompute(answers, kind, tied, world, layout, static):
    error, _ = answers(kind, tied, world, layout, static)
    assert error <= 1e-13  # float64
