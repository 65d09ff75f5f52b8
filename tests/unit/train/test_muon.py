"""Muon: the arithmetic is that of torch.optim.Muon, and matrices that share a tensor are changed one by one."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.muon_optimizer import MatrixLayout, Muon, MuonRule, lay_out, orthogonalized, scale_of
from megatron_v2pe.train.optimizers.muon import MuonConfig


def weights(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def steps(optimizer, parameters, count=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_plain_matrices_go_as_by_torch(scale, nesterov):
    """Measured: 3e-7; iterations are in bf16 in both, and the same."""
    settings = {"lr": 0.02, "weight_decay": 0.1}
    ours, theirs = weights((8, 24), (24, 8), (16, 16)), weights((8, 24), (24, 8), (16, 16))
    lay_out({weight: MatrixLayout() for weight in ours})
    mine = Muon([{"params": ours}], MuonRule(scale=scale, nesterov=nesterov), **settings)
    other = torch.optim.Muon(theirs, momentum=0.95, nesterov=nesterov, adjust_lr_fn=scale, **settings)
    for one, two in zip(steps(mine, ours), steps(other, theirs), strict=True):
        assert (one - two).abs().max() < 2e-6
    assert (steps(mine, ours)[0] - steps(other, theirs, seed=6)[0]).abs().max() > 1e-2


def test_singular_values_come_near_1():
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalized(matrix, 5, torch.float32))
    assert 0.6 < values.min() and values.max() < 1.25
    padded = torch.cat([matrix, torch.zeros(3, 40)])
    found = orthogonalized(padded, 5, torch.float32)
    assert not found[12:].any(), "padding stays zero"
    assert torch.equal(orthogonalized(torch.zeros(3, 4), 5, torch.float32), torch.zeros(3, 4))
    assert scale_of(10, 40, "match_rms_adamw") == pytest.approx(0.2 * math.sqrt(40))
    assert (scale_of(40, 10, "original"), scale_of(10, 40, "original")) == (2.0, 1.0)


@pytest.mark.parametrize(("repeats", "runs"), [(3, (4, 2, 2)), (1, (12, 12))], ids=["qkv", "gate and values"])
def test_matrices_of_one_tensor_are_changed_one_by_one(repeats, runs):
    """Queries of all groups are one matrix; so are gates. Taken as one tensor they would give something else."""
    rule = MuonRule(precision="fp32")
    (joint,) = weights((24, 10))
    layout = MatrixLayout(repeats, runs)
    assert torch.equal(layout.together(layout.apart(joint)), joint)
    rows = [[] for _ in runs]
    for row in range(24):
        place, which = row % sum(runs), 0
        while place >= runs[which]:
            place, which = place - runs[which], which + 1
        rows[which].append(row)
    apart = [torch.nn.Parameter(joint.detach()[some].clone()) for some in rows]
    lay_out({joint: layout, **{part: MatrixLayout() for part in apart}})
    gradient = torch.randn(24, 10, generator=torch.Generator().manual_seed(9))
    joint.grad = gradient
    for part, some in zip(apart, rows, strict=True):
        part.grad = gradient[some].clone()
    before = joint.detach().clone()
    Muon([{"params": [joint]}], rule, 0.02).step()
    Muon([{"params": apart}], rule, 0.02).step()
    for part, some in zip(apart, rows, strict=True):
        assert torch.equal(joint.detach()[some], part.detach())
    lay_out({joint: MatrixLayout()})
    with torch.no_grad():
        joint.copy_(before)
    Muon([{"params": [joint]}], rule, 0.02).step()
    assert (joint.detach()[rows[0]] - apart[0].detach()).abs().max() > 1e-3


def test_settings_of_muon():
    words = ["--recipe", "quickstart", "--optimizer.name", "muon", "--parallel.use-distributed-optimizer", "false"]
    config = cli.parse([*words, "--optimizer.muon-momentum", "0.9"], RECIPES)
    config.validate()
    kept = {"lr": 1e-3, "min_lr": 5e-5, "warmup_ratio": 0.05, "adam_beta2": 0.99}
    assert config.optimizer == MuonConfig(**kept, muon_momentum=0.9), "what both have is kept"
    with pytest.raises(ConfigError, match="optimizer.name is muon.*set parallel.use_distributed_optimizer false"):
        cli.parse(words[:4], RECIPES).validate()
    with pytest.raises(ConfigError, match="optimizer.muon_momentum is 1.0, expected 0 or more and below 1"):
        MuonConfig(muon_momentum=1.0).validate()
