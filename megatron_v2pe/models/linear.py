"""Column- and row-parallel linears with their bias in the product and their weight's gradient in its buffer.

Megatron-Core's add a bias in a pass of its own, and collect gradients in place only where APEX is installed. These are
its classes with the product replaced: names, marks and checkpoints are theirs, and so is which collective runs when.

A linear may carry a `LinearAdapter`, which changes its product (LoRA and its kind; `adapters.py` applies it). It
works where this rank's product is formed, so that it is exact under tensor parallelism:

    column parallel    gather the input  ->  product  ->  adapter  ->  this rank's columns
    row parallel       this rank's part of the input  ->  product  ->  adapter  ->  sum over ranks

The class of the linear stays the same. Code that reads the weight alone, such as generation, calls `forward_weight()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import get_pg_size
from torch import Tensor, nn

from megatron_v2pe.kernels.gradients import add_product
from megatron_v2pe.parallel.token_draws import TokenDraws


@dataclass(frozen=True)
class Split:
    """How a linear, or several in a row, meet the tensor-parallel group."""

    group: dist.ProcessGroup | None
    """The tensor-parallel group; None where the rank is alone."""
    sequence_parallel: bool
    """Inputs are slices of the sequence, gathered here; their gradients are summed into slices."""
    reduce_gradient: bool
    """Without sequence parallelism: input gradients are summed over the group."""

    @classmethod
    def of(cls, linear: ColumnParallelLinear) -> Split:
        """Return the split of a column-parallel linear."""
        if get_pg_size(linear.tp_group) == 1:  # pyright: ignore[reportArgumentType]
            return cls(None, False, False)
        return cls(linear.tp_group, linear.sequence_parallel, not linear.sequence_parallel)  # pyright: ignore[reportArgumentType]

    def whole(self, part: Tensor) -> Tensor:
        """Return the whole input inside of autograd: its gradient is summed over the group as `reduce` does it."""
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(part, group=self.group)
        return copy_to_tensor_model_parallel_region(part, group=self.group) if self.reduce_gradient else part

    def gather(self, part: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Return the whole of [n, width] slices of the sequence, and what to wait for before it is read."""
        if not self.sequence_parallel:
            return part, None
        assert self.group is not None
        whole = part.new_empty(part.shape[0] * self.group.size(), *part.shape[1:])
        return whole, dist.all_gather_into_tensor(whole, part.contiguous(), group=self.group, async_op=True)

    def reduce(self, gradient: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Sum a whole input gradient over the group: the sum or a slice of it, and what to wait for."""
        if self.sequence_parallel:
            assert self.group is not None
            part = gradient.new_empty(gradient.shape[0] // self.group.size(), *gradient.shape[1:])
            return part, dist.reduce_scatter_tensor(part, gradient, group=self.group, async_op=True)
        if self.reduce_gradient:
            return gradient, dist.all_reduce(gradient, group=self.group, async_op=True)
        return gradient, None


NOT_SPLIT = Split(None, False, False)
"""For a product that meets no other rank."""


class LinearAdapter(nn.Module):
    """What changes the product of one linear; parameters of its own are stored under `<linear>.adapter.`.

    Its result must be linear in states and product together: partial products of row-parallel ranks are summed after
    it. A parameter that every tensor-parallel rank holds in full must be read through `shared`.
    """

    sharded_axes: dict[str, int] = {}  # noqa: RUF012 (a constant of each subclass)
    """Name of a parameter that is a shard -> its axis that is divided among tensor-parallel ranks."""

    gated: tuple[str, ...] = ()
    """Those divided along axis 0 that hold, as the first linear of a gated MLP does, rows of the gate, then others."""

    draws: TokenDraws | None = None
    """Names what is drawn for the rows of the input; set before each forward pass in training (`adapters.draw_by`)."""

    needs_draws = False
    """Whether it draws in training."""

    def __init__(self, tp_group: dist.ProcessGroup) -> None:
        """Remember the tensor-parallel group of the linear."""
        super().__init__()
        self.tp_group = tp_group

    def forward(self, states: Tensor, product: Tensor) -> Tensor:
        """Return the product as it is to be.

        Args:
            states: [..., in], what this rank multiplies its weight with.
            product: [..., out], `states @ weight.T` without a bias.

        Returns:
            [..., out].
        """
        raise NotImplementedError

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight [out, in] whose product alone is what `forward` returns."""
        raise NotImplementedError

    def shared(self, parameter: Tensor) -> Tensor:
        """Return a parameter that all tensor-parallel ranks hold in full; its gradient is summed over them."""
        if get_pg_size(self.tp_group) == 1:
            return parameter
        return copy_to_tensor_model_parallel_region(parameter, group=self.tp_group)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Return what a distributed checkpoint stores."""
        state = self.state_dict(prefix="", keep_vars=True)
        groups = {"tp_group": self.tp_group, "dp_cp_group": metadata["dp_cp_group"]}
        stored = make_sharded_tensors_for_checkpoint(state, prefix, self.sharded_axes, sharded_offsets, **groups)
        for name in self.gated:
            stored[f"{prefix}{name}"] = apply_swiglu_sharded_factory(stored[f"{prefix}{name}"], sharded_offsets)
        return stored


class _Adaptable(nn.Module):
    """A linear that may carry an adapter."""

    weight: nn.Parameter

    @property
    def linear_adapter(self) -> LinearAdapter | None:
        """The adapter, None where there is none."""
        return cast(LinearAdapter | None, self._modules.get("adapter"))

    def forward_weight(self) -> Tensor:
        """Return the weight that gives this linear's product by itself: with the adapter merged into it."""
        adapter = self.linear_adapter
        return self.weight if adapter is None else adapter.merged(self.weight)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Return what a distributed checkpoint stores; `metadata["adapters"]` False leaves the adapter out."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        if (adapter := self.linear_adapter) is None:
            return state
        state = {name: entry for name, entry in state.items() if not name.startswith(f"{prefix}adapter.")}
        if metadata.get("adapters", True):
            state |= adapter.sharded_state_dict(f"{prefix}adapter.", sharded_offsets, metadata)
        return state


class ColumnLinear(_Adaptable, ColumnParallelLinear):
    """Megatron-Core's, its bias added in the product."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *_: Any, **settings: Any) -> Tensor:
        split = Split(settings["tp_group"], settings["sequence_parallel"], settings["allreduce_dgrad"])
        bias, in_place = settings["bias"], settings["gradient_accumulation_fusion"]
        if (adapter := self.linear_adapter) is None:
            return _Linear.apply(input, weight, bias, in_place, split)
        states = split.whole(input)
        result = adapter(states, _Linear.apply(states, weight, None, in_place, NOT_SPLIT))
        return result if bias is None else result + bias


class RowLinear(_Adaptable, RowParallelLinear):
    """Megatron-Core's, its bias added in the product on a rank that is alone."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *_: Any, **settings: Any) -> Tensor:
        result = _Linear.apply(input, weight, settings["bias"], settings["gradient_accumulation_fusion"], NOT_SPLIT)
        adapter = self.linear_adapter
        return result if adapter is None else adapter(input, result)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Project [..., in] to [..., out]; the second result is a bias still to be added, see `skip_bias_add`."""
        alone = get_pg_size(self.tp_group) == 1  # pyright: ignore[reportArgumentType]
        if self.skip_bias_add or self.bias is None or not alone or self.linear_adapter is not None:
            return super().forward(input_)
        return _Linear.apply(input_, self.weight, self.bias, self.gradient_accumulation_fusion, NOT_SPLIT), None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, in_place: bool, split: Split) -> Tensor:
        ctx.save_for_backward(states if ctx.needs_input_grad[1] else None, weight)
        ctx.settings = (weight, in_place, split, states.shape)
        total, gathered = split.gather(states)
        if gathered is not None:
            gathered.wait()
        return product(total.flatten(0, -2), weight, bias).unflatten(0, total.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        states, weight = ctx.saved_tensors
        parameter, in_place, split, shape = ctx.settings
        for_states, for_weight, for_bias = ctx.needs_input_grad[:3]
        rows = gradient.flatten(0, -2)
        total, gathered = split.gather(states) if for_weight else (gradient, None)
        states_gradient, reduced, weight_gradient = None, None, None
        if for_states:
            states_gradient = (rows @ weight).view(-1, *shape[1:])
            states_gradient, reduced = split.reduce(states_gradient)
        if for_weight:
            if gathered is not None:
                gathered.wait()
            collected = WeightGradient(parameter, in_place, 1)
            collected.add(rows, total.flatten(0, -2))
            weight_gradient = collected.result()
        bias_gradient = rows.sum(0) if for_bias else None
        if reduced is not None:
            reduced.wait()
        return states_gradient, weight_gradient, bias_gradient, None, None


def product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `states @ weight.T + bias` for [n, in] and [out, in], the bias added where the product is written."""
    return states @ weight.t() if bias is None else torch.addmm(bias, states, weight.t())


class WeightGradient:
    """The gradient of a weight, collected from one or several parts of a sequence."""

    def __init__(self, parameter: nn.Parameter | Tensor, in_place: bool, parts: int) -> None:
        """Choose where it is collected.

        Args:
            parameter: the weight.
            in_place: add to its `main_grad`, the buffer that is reduced, where it has one.
            parts: how often `add` will be called; several are collected in float32 or wider.
        """
        self.parameter, self.parts = parameter, parts
        self.buffer: Tensor | None = getattr(parameter, "main_grad", None) if in_place else None
        self.in_place = self.buffer is not None

    def add(self, gradient: Tensor, states: Tensor) -> None:
        """Add `gradient.T @ states`, of [n, out] and [n, in]."""
        if self.buffer is not None:
            add_product(self.buffer, gradient, states)
        elif self.parts == 1:
            self.buffer = gradient.t() @ states
        else:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            self.buffer = torch.zeros(self.parameter.shape, dtype=wide, device=gradient.device)
            add_product(self.buffer, gradient, states)

    def result(self) -> Tensor:
        """Return what autograd is given: the gradient, or numbers that are not read if it is in the buffer already.

        Megatron-Core's hook counts a parameter's gradient as arrived when autograd brings one, and adds it to the
        buffer unless the parameter is marked.
        """
        if self.in_place:
            setattr(self.parameter, "grad_added_to_main_grad", True)  # noqa: B010 (a tensor attribute)
            return torch.empty_like(self.parameter)
        assert self.buffer is not None
        return self.buffer.to(self.parameter.dtype)
