"""Training checkpoints: the same run goes on in the same layout to the bit, in another to rounding."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from helpers import parity, short_runs
from helpers.packs import random_packs
from megatron_v2pe.checkpoint.folder import latest_iteration, remove_old
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.worker_pool import WorkerError

POLICY = StridePolicy("v2pe_fix", 1)
LAYOUTS = {
    "single": (1, ParallelConfig()),
    "single_plain": (1, ParallelConfig(use_distributed_optimizer=False)),
    "tp2_sp": (2, ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)),
    "pp2": (2, ParallelConfig(pipeline_model_parallel_size=2)),
    "dp2": (2, ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True)),
    "cp2": (2, ParallelConfig(context_parallel_size=2)),
    "tp2_replicated_vision": (2, ParallelConfig(tensor_model_parallel_size=2, vision_parallel="replicated")),
}
STEPS = 2


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    config["llm_config"]["vocab_size"] = 509
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]
    return parity.Case(
        hf_config=config,
        layout=ParallelConfig(),
        packs=random_packs(config, POLICY, "mixed"),
        weights={name: tensor.float() for name, tensor in weights.items()},
        image_token_id=505,
        policy=POLICY,
        dtype=torch.float32,
    )


@pytest.fixture(scope="module")
def train(pools, case):
    def run(name, steps, dtype=torch.float32, **places):
        world, layout = LAYOUTS[name]
        places = {key: str(value) for key, value in places.items()}
        this = replace(case, layout=layout, dtype=dtype)
        return pools[world].run(short_runs.train, case=this, steps=steps, **places)[0]

    return run


@pytest.fixture(scope="module")
def saved(train, golden, tmp_path_factory):
    """Checkpoints of step 2 by layout, and the uninterrupted run of 4 steps."""
    roots, whole = {}, {}

    def of(name, dtype=torch.float32):
        if (name, dtype) not in roots:
            root = tmp_path_factory.mktemp(f"run_{name}")
            shutil.copytree(golden / "reference_checkpoint", root / "hf")
            train(name, STEPS, dtype, save_to=root)
            roots[name, dtype] = root
            whole[name, dtype] = train(name, 2 * STEPS, dtype)
        return roots[name, dtype], whole[name, dtype]

    return of


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in LAYOUTS), ("tp2_sp", torch.bfloat16), ("dp2", torch.bfloat16)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_resume_in_the_same_layout_is_bit_equal(saved, train, name, dtype):
    root, whole = saved(name, dtype)
    resumed = train(name, STEPS, dtype, resume_from=root)
    assert resumed.losses == whole.losses[STEPS:]
    assert resumed.grad_norms == whole.grad_norms[STEPS:]
    assert resumed.learning_rates == whole.learning_rates[STEPS:]
    assert resumed.loader == {"consumed": 17}
    for key, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[key]), key


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("tp2_sp", "single"),
        ("tp2_sp", "pp2"),
        ("tp2_sp", "dp2"),
        ("tp2_sp", "cp2"),
        ("cp2", "tp2_replicated_vision"),
        ("tp2_replicated_vision", "single"),
    ],
)
def test_resume_in_another_layout_goes_on_with_the_same_losses(saved, train, source, target):
    root, whole = saved(source)
    resumed = train(target, STEPS, resume_from=root)
    for ours, theirs in zip(resumed.losses, whole.losses[STEPS:], strict=True):
        assert abs(ours - theirs) / theirs < 1e-6  # measured 2e-7
    # Adam divides by small second moments, so weights agree less closely than losses.
    for ours, theirs in zip(resumed.grad_norms, whole.grad_norms[STEPS:], strict=True):
        assert abs(ours - theirs) / theirs < 1e-5


@pytest.mark.parametrize("distributed", [True, False])
def test_a_stage_where_nothing_learns(pools, case, golden, tmp_path, distributed):
    """With the language model frozen the second stage has no optimizer state to save, and none to find."""
    layout = ParallelConfig(pipeline_model_parallel_size=2, use_distributed_optimizer=distributed)
    frozen = replace(case, layout=layout, frozen={"llm": True})
    shutil.copytree(golden / "reference_checkpoint", tmp_path / "hf")

    def run(steps, **places):
        return pools[2].run(short_runs.train, case=frozen, steps=steps, **places)[0]

    run(STEPS, save_to=str(tmp_path))
    whole, resumed = run(2 * STEPS), run(STEPS, resume_from=str(tmp_path))
    assert resumed.losses == whole.losses[STEPS:]
    key = "language_model.decoder.layers.0.mlp.linear_fc2.weight"
    assert torch.equal(whole.weights[key], case.weights[key]), "frozen weights do not move"


def test_tracker_and_folder(saved):
    root, _ = saved("single")
    assert latest_iteration(root) == STEPS
    folder = root / "iter_0000002"
    names = {path.name for path in folder.iterdir()}
    assert {"hf", "checkpoint.json", "training_state.json", ".metadata", "common.pt"} <= names
    assert json.loads((folder / "checkpoint.json").read_text())["kind"] == "training"
    assert not list(root.glob(".iter_*"))


def test_pruning_keeps_what_the_tracker_names(tmp_path):
    """A run killed between rename and tracker leaves a checkpoint newer than the one that counts."""
    for number in (3, 4, 6):
        (tmp_path / f"iter_{number:07d}").mkdir()
    remove_old(tmp_path, newest=4, keep_latest=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000004", "iter_0000006"]


def test_a_half_written_checkpoint_is_not_taken(saved, tmp_path):
    root, _ = saved("single")
    copy = tmp_path / "run"
    shutil.copytree(root, copy)
    shutil.copytree(copy / "iter_0000002", copy / ".iter_0000004.writing")
    assert latest_iteration(copy) == STEPS
    (copy / "latest_checkpointed_iteration.txt").write_text("4\n")
    with pytest.raises(CheckpointError, match="names iteration 4"):
        latest_iteration(copy)


def test_a_damaged_checkpoint_is_refused(saved, train, tmp_path):
    root, _ = saved("single")
    copy = tmp_path / "run"
    shutil.copytree(root, copy)
    victim = max((copy / "iter_0000002").glob("*.distcp"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(WorkerError, match=victim.name):
        train("single", 1, resume_from=copy)
