"""The moving average of weights: a plain loop gives the same, and an optimizer that does not step leaves it alone."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from megatron_v2pe.checkpoint.weight_average import WeightAverage, average_of


def test_the_average_is_that_of_a_plain_loop():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    inner = torch.optim.AdamW([{"params": [model.weight], "lr": 0.1}])
    optimizer: object = SimpleNamespace(optimizer=inner)
    assert average_of(optimizer) is None
    average = WeightAverage(optimizer, model, 0.9)
    assert average_of(optimizer) is average
    expected = model.weight.detach().double()
    assert torch.equal(average.wholes()[0].double(), expected), "it begins with the weights"
    for step in range(5):
        model(torch.randn(4, 3)).square().sum().backward()
        inner.step()
        inner.zero_grad()
        expected = 0.9 * expected + 0.1 * model.weight.detach().double()
        (found,) = average.wholes()
        assert found.dtype == torch.float32 and len(average.wholes()) == 1, "what is frozen has none"
        assert (found - expected).abs().max() < 1e-7, step  # measured 3e-8
    average.restart()
    assert torch.equal(average.wholes()[0], model.weight)
