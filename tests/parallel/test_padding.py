"""The 6B tower at tensor-parallel sizes that do not divide its heads: heads and columns of zeros, and what proves them.

The tower has 5 heads and 44 columns in its MLP, so that 2, 3 and 4 ranks hold padding (6, 6 and 8 heads; 44, 45 and 44
columns) and 5 ranks none of heads; 509 tokens of vocabulary are padded at every size. Four processes hold padding
alone on the last rank.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from helpers import parity, short_runs, towers
from helpers.conversion import load_whole
from helpers.golden import read_checkpoint
from helpers.hf_names import to_full_state
from helpers.packs import random_packs
from megatron_v2pe.checkpoint.description import read_tensors
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder
from megatron_v2pe.workshop.worker_pool import WorkerError

OUTPUT = 2e-5  # absolute, on values up to 11; measured 2.0e-6
GRADIENT = 1e-5  # relative to the largest entry of each tensor; measured 1.1e-6
POLICY = StridePolicy("v2pe_fix", 1)
SIZES = [2, 3, *(pytest.param(size, marks=pytest.mark.exhaustive) for size in (4, 5, 8))]
LLM_HEADS = {4: 4, 8: 8}
"""Of the decoder, which has to be divided; 30 elsewhere."""


def tensor_parallel(size, **others):
    return ParallelConfig(tensor_model_parallel_size=size, **others)


def of_size(size, **vision):
    return towers.small_config(llm_heads=LLM_HEADS.get(size, 30), **vision)


def runs_of(size):
    """The tower in every way of computing it, with the options of each run."""
    config = of_size(size)
    model = towers.by_transformers(config["vision_config"])
    weights = towers.published_names({name: value.detach().clone() for name, value in model.named_parameters()})
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    plain = towers.Run(config, weights, pixels)
    dropped = replace(plain, options={"drop_path_rate": 0.4}, drop_path=DropPathKey(seed=3, pack=0))
    runs = {
        "plain": plain,
        "recompute": replace(plain, options={"recompute_vision": True}),
        "drop path": dropped,
        "drop path, recompute": replace(dropped, options={**dropped.options, "recompute_vision": True}),
        "layer before the last": replace(plain, hf_config={**config, "select_layer": -2}),
        **{name: replace(plain, planted_break=name) for name in towers.BREAKS},
    }
    return model, runs


def difference(ours, theirs):
    """Largest errors of outputs, absolute, and of gradients, relative to the largest of their tensor."""
    assert ours.gradients.keys() == theirs.gradients.keys()
    gradients = (
        ((ours.gradients[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)).item()
        for name, value in theirs.gradients.items()
    )
    return (ours.output - theirs.output).abs().max().item(), max(gradients)


@pytest.mark.parametrize("size", SIZES)
def test_the_tower_at_any_tensor_parallel_size(size, pools):
    model, runs = runs_of(size)
    alone, split = (  # of the last rank, which holds padding
        dict(zip(runs, pools[ranks].run(towers.ours, runs=[*runs.values()], layout=layout)[-1], strict=True))
        for ranks, layout in ((1, ParallelConfig()), (size, tensor_parallel(size)))
    )
    reference = towers.hidden_states(model, runs["plain"].pixels)
    (reference[-1].square().sum() / 2).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = to_full_state(towers.published_names(gradients), 5)
    theirs = towers.Outcome(reference[-1].detach(), gradients, "", 0.0)
    output, gradient = difference(split["plain"], theirs)
    assert output < OUTPUT and gradient < GRADIENT, (output, gradient)
    assert (split["layer before the last"].output - reference[-2]).abs().max() < OUTPUT
    for name in set(runs) - set(towers.BREAKS):
        output, gradient = difference(split[name], alone[name])
        assert output < OUTPUT and gradient < GRADIENT, (name, output, gradient)
        assert split[name].padding == 0 and not split[name].refused
    assert not torch.equal(split["drop path"].output, split["plain"].output)
    _check_breaks(size, split, alone["plain"])


def _check_breaks(size, split, right):
    """Padding that is not zero, statistics of a rank's own heads, and a width with padding are seen."""
    assert difference(split["sum"], right)[0] > 1000 * OUTPUT
    if size == 5:
        return  # no heads are padding
    assert difference(split["width"], right)[0] > 1000 * OUTPUT
    assert difference(split["padding"], right)[0] > 1000 * OUTPUT
    assert split["padding"].padding > 1000 * GRADIENT
    assert "values of its padding are not zero" in split["padding"].refused


@pytest.fixture(scope="module")
def case(pools):
    config = of_size(2)
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]
    return parity.Case(
        hf_config=config,
        layout=ParallelConfig(),
        packs=random_packs(config, POLICY, "mixed"),
        weights={name: tensor.float() for name, tensor in weights.items()},
        image_token_id=505,
        policy=POLICY,
    )


@pytest.fixture(scope="module")
def source(case, tmp_path_factory):
    """An HF folder of the case's architecture and its conversion."""
    root = tmp_path_factory.mktemp("tower")
    write_hf_folder(root / "hf", case.hf_config, dtype=torch.bfloat16, shards=2, seed=1)
    hf_to_mcore(root / "hf", root / "mcore")
    return root


WHOLE_MODEL = {
    "sequence parallel, tiles recomputed": (
        tensor_parallel(2, sequence_parallel=True, use_distributed_optimizer=False),
        {"recompute_plan": RecomputePlan(0, 0, 0, 1)},
    ),
    "a whole tower on every rank": (tensor_parallel(2, vision_parallel="replicated"), {}),
    "three ranks": (tensor_parallel(3, use_distributed_optimizer=False), {}),
}


@pytest.mark.parametrize("name", WHOLE_MODEL)
def test_the_whole_model(name, case, pools):
    """Loss, logits and every gradient in float64, by which layouts differ by rounding alone; measured 7e-15."""
    layout, options = WHOLE_MODEL[name]
    alone = replace(case, dtype=torch.float64, drop_path_seed=1, options={"drop_path_rate": 0.2})
    this = replace(alone, layout=layout, options={**alone.options, **options})
    result = pools[layout.tensor_model_parallel_size].run(parity.run, case=this)[0]
    errors = parity.compare(pools[1].run(parity.run, case=alone)[0], result)
    assert max(errors["loss"], errors["logits"], errors["gradients"]) < 2e-12, errors


STEPS = 2
LAYOUTS = {
    "1": ParallelConfig(),
    "2": tensor_parallel(2),
    "2_sp": tensor_parallel(2, sequence_parallel=True),
    "2_plain": tensor_parallel(2, use_distributed_optimizer=False),
    "3": tensor_parallel(3),
}


@pytest.fixture(scope="module")
def train(pools, case):
    def run(name, steps, dtype=torch.float32, **places):
        layout = LAYOUTS[name]
        this = replace(case, layout=layout, dtype=dtype, drop_path_seed=1, options={"drop_path_rate": 0.2})
        places = {key: str(value) for key, value in places.items()}
        return pools[layout.tensor_model_parallel_size].run(short_runs.train, case=this, steps=steps, **places)

    return run


@pytest.fixture(scope="module")
def whole(train):
    """The run of four steps by one process."""
    return train("1", 2 * STEPS)[0]


def assert_goes_on(resumed, whole):
    """The same losses and norms to rounding: Adam divides by small second moments; measured 4e-6 and 8e-6."""
    count = len(resumed.losses)
    for ours, theirs, tolerance in (
        (resumed.losses, whole.losses[-count:], 2e-5),
        (resumed.grad_norms, whole.grad_norms[-count:], 1e-4),
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert abs(one - other) / other < tolerance, (ours, theirs)


@pytest.mark.parametrize("name", ["2_sp", "2_plain", "3"])
def test_padding_stays_zero_in_training(name, train, whole, source, tmp_path):
    """Steps with weight decay: weights and gradients of what is padding, loss and norm, the checkpoint, resumes."""
    shutil.copytree(source / "mcore" / "hf", tmp_path / "hf")
    ranks = train(name, STEPS, save_to=tmp_path)
    for history in ranks:
        assert all(weight == gradient == 0 for _, weight, gradient in history.padding.values())
    held = sum(count for history in ranks for count, _, _ in history.padding.values())
    tower = [key for key in ranks[-1].padding if key.startswith("vision_model.")]
    assert held and {key.rpartition("layers.0.")[2] for key in tower if ".layers.0." in key} >= {
        "self_attention.linear_qkv.weight",
        "self_attention.linear_proj.weight",
        "self_attention.q_layernorm.weight",
        "self_attention.k_layernorm.weight",
    }
    assert ("vision_model.decoder.layers.0.mlp.linear_fc2.weight" in tower) == (name == "3")
    resumed = train(name, STEPS, resume_from=tmp_path)[0]
    assert_goes_on(ranks[0], replace(whole, losses=whole.losses[:STEPS], grad_norms=whole.grad_norms[:STEPS]))
    assert_goes_on(resumed, whole)
    uninterrupted = train(name, 2 * STEPS)[0]
    assert (resumed.losses, resumed.grad_norms) == (uninterrupted.losses[STEPS:], uninterrupted.grad_norms[STEPS:])
    assert all(torch.equal(resumed.weights[key], value) for key, value in uninterrupted.weights.items())
    others = () if name == "2_plain" else {"1", "2", "3"} - {name[0]}  # these have the distributed optimizer
    for other in others:
        assert_goes_on(train(other, STEPS, resume_from=tmp_path)[0], whole)
    _check_checkpoint(tmp_path, ranks[0], tmp_path / "exported")


def _check_checkpoint(root, history, target):
    """A run's checkpoint has the shapes of the model without padding, weights and optimizer, and its export too."""
    tensors = read_tensors(root / "iter_0000002")
    for key, value in history.weights.items():
        assert tensors[key].size == tuple(value.shape), key
        for state in ("exp_avg", "exp_avg_sq"):
            assert tensors[f"optimizer.state.{state}.{key}"].size == tuple(value.shape), key
    mcore_to_hf(root, target, dtype="fp32")
    _, state = read_checkpoint(target)
    exported = to_full_state(state, 5)
    assert exported.keys() == history.weights.keys()
    assert all(torch.equal(exported[key], value) for key, value in history.weights.items())


def test_a_run_whose_padding_holds_numbers_is_not_saved(train, pools, case, source, tmp_path, monkeypatch):
    this = replace(case, layout=LAYOUTS["2"], planted_break="padding")
    shutil.copytree(source / "mcore" / "hf", tmp_path / "hf")
    with pytest.raises(WorkerError, match="values of its padding are not zero; a checkpoint has no place"):
        pools[2].run(short_runs.train, case=this, steps=1, save_to=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("size", SIZES)
def test_a_converted_folder_to_models_and_back(size, pools, source, tmp_path):
    """The bytes of every tensor of a tower of 25 heads."""
    config = of_size(size, hidden_size=100, num_attention_heads=25, num_hidden_layers=2)
    write_hf_folder(tmp_path / "hf", config, dtype=torch.bfloat16, shards=2, seed=1)
    hf_to_mcore(tmp_path / "hf", tmp_path / "mcore")
    places = {"folder": str(tmp_path / "mcore"), "hf_config": config, "layout": tensor_parallel(size)}
    _, state = read_checkpoint(tmp_path / "hf")
    expected = to_full_state(state, 25)
    loaded = pools[size].run(load_whole, **places, dtype=torch.bfloat16)[0]
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    assert not any(pools[size].run(towers.saved_again, **places, root=str(tmp_path / "run")))
    mcore_to_hf(tmp_path / "run", tmp_path / "back")
    for path in (tmp_path / "hf").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()
