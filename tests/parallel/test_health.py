"""What a run watches of itself is the same in every layout, and a step that is not finite changes no bit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from helpers import health_runs, parity
from helpers.health_runs import Plan
from helpers.packs import random_packs
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
ONE = ParallelConfig(use_distributed_optimizer=False)
LAYOUTS = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True, use_distributed_optimizer=False),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "cp2": ParallelConfig(context_parallel_size=2),
    "dp2": ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True),
}
STEPS = ((0, 2), (2, 3), (0, 3), (3, 0))
"""Packs of each step, all of them with images on every rank."""
BROKEN = 3
WATCHED = HealthConfig(interval=1, attention_interval=2, divergence_interval=1)
NORM = 1e-5  # relative, of every part and step; measured 9.5e-7 (tp2), 9.1e-7 (cp2), 2.9e-7 (dp2), 2.5e-7 (pp2)
RATIO = 1e-5  # relative, of every part and step; measured 3.8e-7 (tp2), 1.5e-7 (dp2), 1.0e-7 (cp2), 9.6e-8 (pp2)
LOGIT = 1e-5  # relative, of every layer; measured 1.2e-6 (cp2), 8.1e-7 (tp2), 4.4e-7 (pp2)
FINAL_NORM = "language_model.decoder.final_layernorm.weight"


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]

    def make(layout):
        return parity.Case(
            hf_config=config,
            layout=layout,
            packs=random_packs(config, POLICY, "mixed"),
            weights={name: tensor.float() for name, tensor in weights.items()},
            image_token_id=505,
            policy=POLICY,
            dtype=torch.float32,
        )

    return make


@pytest.fixture(scope="module")
def alone(pools, case):
    """One process, which nothing goes wrong in."""
    return pools[1].run(health_runs.train, case=case(ONE), plan=Plan(STEPS, health=WATCHED))[0]


def figures(rows, prefix):
    return [{name: value for name, value in row.items() if name.startswith(prefix)} for row in rows]


def largest_error(ours, theirs, prefix):
    """Of all figures of all rows, relative; both must have the same names."""
    errors = [0.0]
    for mine, other in zip(figures(ours, prefix), figures(theirs, prefix), strict=True):
        assert mine.keys() == other.keys()
        errors += [abs(mine[name] - other[name]) / abs(other[name]) for name in other]
    return max(errors)


def same_bits(some, others):
    return len(some) == len(others) and all(torch.equal(one, two) for one, two in zip(some, others, strict=True))


def test_parts_add_up_to_the_whole(alone):
    parts = {"vision_model", "vision_projection", "language_model", "embeddings"}
    for row in alone.rows:
        norms = {name.rpartition("/")[2]: row[name] for name in row if name.startswith("health/grad_norm/")}
        assert norms.keys() == parts
        assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(row["grad_norm"], rel=1e-6)
        assert row["health/clipped_share"] == 1.0 and row["health/diverged"] == 0.0
        assert row["host_memory_gib"] > 0.05 and 0 <= row["data_wait_seconds"] < row["seconds"]
    last = {name.rpartition("/")[2]: alone.rows[-1][name] for name in alone.rows[-1] if "/weight_norm/" in name}
    squares = dict.fromkeys(parts, 0.0)
    for name, weight in alone.weights.items():
        head = "embeddings" if "word_embeddings" in name or "output_layer" in name else name.split(".")[0]
        squares[head] += weight.double().square().sum().item()
    assert last == pytest.approx({part: square**0.5 for part, square in squares.items()}, rel=1e-6)
    assert [("health/attention_logits_max" in row) for row in alone.rows] == [False, True, False, True]


def test_a_ratio_is_the_change_over_the_weights_and_the_slow_rank_is_named(pools, case):
    plan = Plan(STEPS[:1], health=HealthConfig(interval=1), marks_apart=(1.0, 3.0))
    made = case(LAYOUTS["dp2"])
    found = pools[2].run(health_runs.train, case=made, plan=plan)[0]
    squares = {}
    for name, weight in found.weights.items():
        head = "embeddings" if "word_embeddings" in name or "output_layer" in name else name.split(".")[0]
        change, whole = squares.setdefault(head, (0.0, 0.0))
        old = made.weights[name].double()
        squares[head] = change + (weight.double() - old).square().sum().item(), whole + old.square().sum().item()
    expected = {f"health/update_ratio/{part}": (change / whole) ** 0.5 for part, (change, whole) in squares.items()}
    (row,) = found.rows
    assert {name: row[name] for name in row if "update_ratio" in name} == pytest.approx(expected, rel=1e-6)
    seconds = [row[f"health/rank_seconds/{which}"] for which in ("min", "mean", "max")]
    assert seconds == [1.0, 2.0, 3.0] and row["health/slowest_rank"] == 1.0


def test_watching_changes_no_bit(pools, case, alone):
    off = HealthConfig(interval=None, attention_interval=None, divergence_interval=None, spike_factor=None)
    plain = pools[1].run(health_runs.train, case=case(ONE), plan=Plan(STEPS, health=off))[0]
    assert same_bits(plain.state, alone.state)
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in plain.rows] == [row[name] for row in alone.rows]


def test_a_weight_that_two_ranks_hold_counts_once(pools, case, alone):
    """Planted: replicated weights are taken for parts."""
    plan = Plan(STEPS[:1], health=WATCHED, before_step=health_runs.Planted("copies are parts"))
    broken = pools[2].run(health_runs.train, case=case(LAYOUTS["tp2"]), plan=plan)[0]
    for prefix in ("health/grad_norm/", "health/weight_norm/", "health/update_ratio/"):
        assert largest_error(broken.rows, alone.rows[:1], prefix) > 100 * NORM


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_watches_and_skips_as_one_process(pools, case, alone, tmp_path, name):
    made, pool = case(LAYOUTS[name]), pools[2]
    whole = pool.run(health_runs.train, case=made, plan=Plan(STEPS, health=WATCHED))[0]
    assert largest_error(whole.rows, alone.rows, "health/grad_norm/") < NORM
    assert largest_error(whole.rows, alone.rows, "health/weight_norm/") < NORM
    assert largest_error(whole.rows, alone.rows, "health/update_ratio/") < RATIO
    if name == "dp2":  # each of two copies measures its own first pack, one process the first of both
        both = zip(figures(whole.rows, "health/attention"), figures(alone.rows, "health/attention"), strict=True)
        assert all(mine[layer] >= (1 - LOGIT) * other[layer] for mine, other in both for layer in other)
    else:
        assert largest_error(whole.rows, alone.rows, "health/attention") < LOGIT

    ranks = (1,) if name == "dp2" else (0,)
    plan = Plan(STEPS, broken={BROKEN: ranks}, health=WATCHED, folder=str(tmp_path / "logs"))
    skipped = pool.run(health_runs.train, case=made, plan=plan)
    without = Plan((*STEPS[: BROKEN - 1], *STEPS[BROKEN:]), health=WATCHED)
    expected = pool.run(health_runs.train, case=made, plan=without)
    for rank, (ours, theirs) in enumerate(zip(skipped, expected, strict=True)):
        assert ours.error is None, rank
        assert same_bits(ours.state, theirs.state), "moments, masters and step counts"
        assert ours.weights.keys() == theirs.weights.keys()
        assert same_bits(list(ours.weights.values()), list(theirs.weights.values()))
    rows = skipped[0].rows
    assert [row["iteration"] for row in rows if row.get("health/skipped")] == [BROKEN]
    assert rows[BROKEN - 1]["loss"] is None and rows[BROKEN]["loss"] is not None
    assert rows[-1]["health/skipped_steps"] == 1.0
    (line,) = (tmp_path / "logs" / "skipped_steps.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["iteration"] == BROKEN and found["weights_not_finite"] == []
    packs = {pack["samples"][0]["dataset"]: pack["loss_share"] for pack in found["packs"]}
    assert packs.keys() == {"set0", "set3"}
    wrong = {"set3"} if name == "dp2" else {"set0", "set3"}
    assert {dataset for dataset, share in packs.items() if share is None} == wrong
    assert found["packs"][0]["samples"][1] == {
        "dataset": "set0",
        "file": "pack0.jsonl",
        "line": 1,
        "images": ["0-1.png"],
    }


def without_times(rows):
    times = ("seconds", "tokens_per_second", "tiles_per_second", "memory_gib", "host_memory_gib", "data_wait_seconds")
    left = (*times, "tflops_per_device", "health/slowest_rank")
    kept = [{name: value for name, value in row.items() if name not in left} for row in rows]
    return [{name: value for name, value in row.items() if "/rank_seconds/" not in name} for row in kept]


def test_a_run_goes_on_after_a_skipped_step_as_if_never_interrupted(pools, case, tmp_path):
    made = case(LAYOUTS["dp2"])
    plan = Plan(STEPS, broken={2: (0,), 4: (1,)}, health=WATCHED)
    whole = pools[2].run(health_runs.train, case=made, plan=plan)
    first = replace(plan, steps=STEPS[:3], save_to=str(tmp_path / "run"))
    begun = pools[2].run(health_runs.train, case=made, plan=first)
    rest = pools[2].run(health_runs.train, case=made, plan=replace(plan, resume_from=str(tmp_path / "run")))
    for one, other, all_of_it in zip(begun, rest, whole, strict=True):
        assert without_times(one.rows + other.rows) == without_times(all_of_it.rows)
        assert same_bits(other.state, all_of_it.state)
    assert rest[0].rows[-1]["health/skipped_steps"] == 2.0, "those of the first process count"


def test_bounds_and_weights_that_are_no_numbers_end_a_run(pools, case):
    made = case(LAYOUTS["tp2"])
    bound = HealthConfig(interval=None, max_skipped_in_a_row=1)
    plan = Plan(STEPS, broken={2: (0,), 3: (0,)}, health=bound)
    ended = pools[2].run(health_runs.train, case=made, plan=plan)
    one_step = pools[2].run(health_runs.train, case=made, plan=Plan(STEPS[:1], health=bound))
    for ours, theirs in zip(ended, one_step, strict=True):
        words = "step 3: the loss is nan; health.max_skipped_in_a_row allows 1; skipped before: 2;"
        assert ours.error.startswith(words)
        assert same_bits(ours.state, theirs.state) and len(ours.rows) == 2
    none = replace(plan, health=HealthConfig(max_skipped_in_a_row=0))
    assert "step 2: the loss is nan" in pools[2].run(health_runs.train, case=made, plan=none)[1].error
    weights = {name: weight.clone() for name, weight in made.weights.items()}
    weights["language_model.decoder.final_layernorm.weight"][3] = torch.nan
    for found in pools[2].run(health_runs.train, case=replace(made, weights=weights), plan=Plan(STEPS[:2])):
        assert f"step 1: the loss is nan; weights are not finite: {FINAL_NORM}; nothing was saved" in found.error


@pytest.mark.parametrize("name", ["tp2", "dp2 alike"])
def test_one_flipped_bit_is_found(pools, case, name):
    layout = ParallelConfig(use_distributed_optimizer=False) if name == "dp2 alike" else LAYOUTS[name]
    plan = Plan(
        STEPS[:4],
        health=HealthConfig(interval=None, divergence_interval=2),
        before_step=health_runs.flip_a_bit(FINAL_NORM, rank=1, step=4),
    )
    runs = pools[2].run(health_runs.train, case=case(layout), plan=plan)
    for found in runs:
        assert f"after step 4 ranks hold different values of what must be the same: {FINAL_NORM}" in found.error
        assert "Nothing is saved; go on from the start" in found.error
        assert found.rows[1]["health/diverged"] == 0.0
        out_of_turn = [name for row in found.rows for name in row if "update_ratio" in name or "rank" in name]
        assert not out_of_turn, out_of_turn
    if name != "tp2":
        return
    warned = replace(plan, health=replace(plan.health, divergence="warn"))
    row = pools[2].run(health_runs.train, case=case(layout), plan=warned)[0].rows[-1]
    assert row["health/diverged"] >= 1.0
