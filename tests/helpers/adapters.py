"""A small InternVL2 with an adapter on every linear, one step in any layout: what `models/adapters.py` is tested with.

The adapter of the tests scales a product and adds one of low rank to it, so that it uses everything an adapter may:
the input, the product, parameters that are divided among tensor-parallel ranks and parameters that are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helpers import parity
from megatron_v2pe.models.adapters import apply_adapters
from megatron_v2pe.models.linear import ColumnLinear, LinearAdapter, RowLinear
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full

RANK = 3


class ScaledLowRank(LinearAdapter):
    """`(1 + scale) * product + states @ down.T @ up.T`."""

    def __init__(self, name: str, linear: ColumnLinear | RowLinear, forget: str | None = None) -> None:
        """Draw parameters; `forget` leaves the sum of shared gradients out."""
        assert linear.tp_group is not None
        super().__init__(linear.tp_group)  # type: ignore[arg-type]
        (outputs, inputs), dtype = linear.weight.shape, linear.weight.dtype
        self.sharded_axes = {"up": 0} if isinstance(linear, ColumnLinear) else {"down": 1}
        if name.endswith("linear_fc1") and getattr(linear.config, "gated_linear_unit", False):
            self.gated = ("up",)
        self.forget = forget
        self.down = nn.Parameter(torch.randn(RANK, inputs, dtype=dtype) * 0.1)
        self.up = nn.Parameter(torch.randn(outputs, RANK, dtype=dtype) * 0.1)
        self.scale = nn.Parameter(torch.randn(1, dtype=dtype) * 0.1)

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        values = [
            parameter if name in self.sharded_axes or self.forget else self.shared(parameter)
            for name, parameter in self.named_parameters()
        ]
        return values[0], values[1], values[2]

    def forward(self, states: Tensor, product: Tensor) -> Tensor:
        """See the class."""
        down, up, scale = self._all()
        return product * (1 + scale) + states @ down.t() @ up.t()

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight of the same result."""
        return weight * (1 + self.scale) + self.up @ self.down


def random_adapters(case: parity.Case, targets: tuple[str, ...]) -> tuple[list[str], dict[str, Tensor]]:
    """Return the names of the adapted linears and the adapters' parameters, by checkpoint key; runs on one process."""
    options = ModelOptions(params_dtype=case.dtype)
    with built(case.hf_config, case.layout, options, case.policy, case.image_token_id) as model:
        torch.manual_seed(5)
        names = apply_adapters(model, targets, ScaledLowRank)
        full = gather_full(model, lambda parameter: parameter.detach())
    return names, {key: value.clone() for key, value in full.items() if ".adapter." in key}


def run(
    case: parity.Case, targets: tuple[str, ...], adapters: dict[str, Tensor], how: str = "adapters"
) -> tuple[float, dict[str, Tensor]]:
    """Run one step.

    Args:
        case: weights, packs and layout.
        targets: of `apply_adapters`.
        adapters: the adapters' parameters, by checkpoint key.
        how: `adapters`; `merged` into the weights instead; `forgotten` sums of shared gradients.

    Returns:
        The loss, and all gradients by checkpoint key.
    """
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.step import forward_backward

    options = ModelOptions(params_dtype=case.dtype, **case.options)
    with built(case.hf_config, case.layout, options, case.policy, case.image_token_id) as model:
        forget = "all" if how == "forgotten" else None
        apply_adapters(model, targets, lambda name, linear: ScaledLowRank(name, linear, forget))
        load_full(model, {**case.weights, **adapters})
        if how == "merged":
            _merge(model)
        parity.freeze_parts(model, case)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        wrapped: Any = wrap(model, case.layout, groups, torch.device("cpu"))
        mine = [parity.micro_batch(case, number, model) for number in range(len(case.packs))]
        denominator = sum(pack.weights.double().sum().item() for pack in case.packs)
        wrapped.zero_grad_buffer()
        loss = forward_backward(wrapped, mine, len(mine), denominator)
        return loss, gather_full(model, lambda parameter: getattr(parameter, "main_grad", None))


def _merge(model: nn.Module) -> None:
    """Put every adapter into its weight and take it away."""
    for module in model.modules():
        if isinstance(module, (ColumnLinear, RowLinear)) and module.linear_adapter is not None:
            with torch.no_grad():
                module.weight.copy_(module.forward_weight())
            del module._modules["adapter"]


def load(case: parity.Case, targets: tuple[str, ...], folder: str, begin: float) -> dict[str, Tensor]:
    """Build a model with adapters, all of whose numbers are `begin`, and load a folder; return its full state."""
    from pathlib import Path

    from megatron_v2pe.checkpoint.store import load_model

    with built(case.hf_config, case.layout, ModelOptions(), case.policy, case.image_token_id) as model:
        apply_adapters(model, targets, ScaledLowRank)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(begin)
        load_model(Path(folder), model)
        return gather_full(model, lambda parameter: parameter.detach())
