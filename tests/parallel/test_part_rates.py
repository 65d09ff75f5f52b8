"""Rates of parts, layer-wise decay and a moving average of weights: by formula in one process, and in every layout.

A run that is saved in one layout goes on in another, where a pipeline stage may lack whole groups of parameters.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import parity, short_runs
from helpers.packs import random_packs
from megatron_v2pe.checkpoint.folder import newest
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
PLAIN = ParallelConfig(use_distributed_optimizer=False)
TP2 = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
DP2 = ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True)
SETTINGS = AdamWConfig(
    lr=1e-2,
    min_lr=1e-3,
    warmup_steps=3,
    weight_decay=0.1,
    weight_decay_on_all=False,
    vision_lr=2e-2,
    vision_lr_decay=0.5,
    projector_lr=4e-2,
    embedding_lr=5e-3,
    language_weight_decay=0.3,
    embedding_weight_decay=0.0,
    ema_decay=0.6,
    adam_eps=1e-2,  # so that rounding of small gradients is not made large
)
"""Every part but the language model's layers has a rate of its own; those and the embeddings have a decay."""
STEPS = 2


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]
    return parity.Case(
        hf_config=config,
        layout=PLAIN,
        packs=random_packs(config, POLICY, "mixed"),
        weights={name: tensor.float() for name, tensor in weights.items()},
        image_token_id=505,
        policy=POLICY,
    )


@pytest.fixture(scope="module")
def train(pools, case, golden, tmp_path_factory):
    def run(layout, steps, save=False, settings=SETTINGS, **places):
        if save:
            root = tmp_path_factory.mktemp("run")
            hf_to_mcore(golden / "reference_checkpoint", root / "start")
            shutil.copytree(root / "start" / "hf", root / "hf")
            places["save_to"] = str(root)
        world = 1 if layout == PLAIN else 2
        this = replace(case, layout=layout)
        history = pools[world].run(short_runs.train, case=this, steps=steps, settings=settings, **places)[0]
        return (history, places["save_to"]) if save else history

    return run


@pytest.fixture(scope="module")
def whole(train):
    """The uninterrupted run of one process."""
    return train(PLAIN, 2 * STEPS)


def difference(one, other):
    return max((one[key] - other[key]).abs().max().item() / one[key].abs().max().item() for key in one)


def expected(name: str, dimensions: int, layers: int) -> tuple[float, float]:
    """Return the highest rate and the weight decay of a parameter, written down a second time."""
    decay = 0.1
    if name.startswith("vision_model."):
        layer = re.search(r"layers\.(\d+)\.", name)
        rate = 2e-2 * 0.5 ** (layers + 2 - (int(layer[1]) + 1 if layer else 0) - 1)
    elif name.startswith("vision_projection."):
        rate = 4e-2
    elif "word_embeddings" in name or "output_layer" in name:
        rate, decay = 5e-3, 0.0
    else:
        rate, decay = 1e-2, 0.3
    return rate, decay if dimensions > 1 else 0.0


def test_every_parameter_has_its_rate_in_every_step(whole, case):
    layers = case.hf_config["vision_config"]["num_hidden_layers"]
    assert len(whole.rates) == 2 * STEPS and len(whole.rates[0]) > 30
    for step, rates in enumerate(whole.rates):
        for name, (rate, decay) in rates.items():
            is_vector = name.endswith((".bias", ".ls1", ".ls2")) or "norm" in name
            highest, wanted = expected(name, 1 if is_vector else 2, layers)
            assert rate == pytest.approx(highest * step / 3, rel=1e-12), (step, name)  # three steps of warm-up
            assert decay == pytest.approx(wanted, rel=1e-12), (step, name)


@pytest.fixture(scope="module")
def saved(train):
    """Two steps in two pipeline stages, and where they are saved."""
    return train(PP2, STEPS, save=True)


def test_layouts_agree_and_go_on_from_one_another(train, whole, saved):
    """Measured: weights and averages 1.3e-7 of the largest entry; rates of the wrong parts give 1e-2 and more."""
    first, root = saved
    straight = train(PP2, 2 * STEPS)
    again = train(PP2, STEPS, resume_from=root)
    assert again.losses == straight.losses[STEPS:] and first.losses == straight.losses[:STEPS]
    for key, tensor in straight.weights.items():
        assert torch.equal(tensor, again.weights[key]), key
        assert torch.equal(straight.averages[key], again.averages[key]), key
    found = {
        "pp2": straight,
        "pp2 to dp2": train(DP2, STEPS, resume_from=root),
        "pp2 to tp2": train(TP2, STEPS, resume_from=root),
    }
    for name, history in found.items():
        assert difference(whole.weights, history.weights) < 1e-6, name
        assert difference(whole.averages, history.averages) < 1e-6, name
    wrong = train(DP2, STEPS, settings=replace(SETTINGS, vision_lr_decay=None), resume_from=root)
    assert difference(whole.weights, wrong.weights) > 1e-3, "rates are those of the run that goes on"
    assert wrong.rates == [{}, {}], "shares of parameters"


def test_the_average_is_exported(saved, train, tmp_path):
    first, root = saved
    folder = newest(Path(root))
    mcore_to_hf(folder, tmp_path / "hf", weights="ema", dtype="fp32")
    hf_to_mcore(tmp_path / "hf", tmp_path / "back")
    reader = vet_checkpoint(tmp_path / "back", verify=True)
    assert reader.tensors.keys() == first.averages.keys()
    for key, average in first.averages.items():
        assert torch.equal(reader.read_rows(key, 0, average.shape[0]), average), key
    with pytest.raises(CheckpointError, match=r"back: holds no average of weights \(EMA\): train with"):
        mcore_to_hf(tmp_path / "back", tmp_path / "none", weights="ema")
    assert not (tmp_path / "none").exists()
