"""Muon's arithmetic for matrices that tensor-parallel ranks hold in parts, and how it stands beside AdamW in a run.

A matrix is changed by its momentum, all of whose singular values are brought near 1 (Jordan et al., "Muon: an optimizer
for hidden layers in neural networks", 2024). A polynomial of odd degree does so: X becomes
`a X + b (X X^T) X + c (X X^T)^2 X`, five times over, begun with X of norm 1.

What one parameter holds may be several matrices: queries, keys and values of `linear_qkv` lie group by group in one
tensor, gate and values of a gated MLP below each other. Each is orthogonalised by itself. A tensor-parallel rank has
some rows or columns of each; it gathers them, computes the whole, as every other rank does, and takes its own part, so
that the result does not depend on the layout. Momentum is kept in parts, as the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    ChainedOptimizer,
    MegatronOptimizer,
    OptimizerConfig,
    _get_param_groups,
    get_megatron_optimizer,
)
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import get_pg_size
from torch import Tensor, nn

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models import padding
from megatron_v2pe.models.linear import ColumnLinear, RowLinear

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the polynomial, as published."""
LEAST_NORM = 1e-7
"""A matrix is divided by its norm, or by this where its norm is smaller."""
_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_LAYOUT = "v2pe_muon_layout"
_LAYERS = ".decoder.layers."


def orthogonalized(matrix: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Return a matrix with its singular values brought near 1, in `dtype`.

    Args:
        matrix: [rows, columns].
        iterations: how often the polynomial is applied.
        dtype: type it is computed in.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if is_tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=LEAST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def scale_of(rows: int, columns: int, kind: str) -> float:
    """Return the factor of an update (`MuonRule.scale`)."""
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


@dataclass(frozen=True)
class MuonRule:
    """How momentum becomes an update; `train/optimizers/muon.py` has the settings, and says what they mean."""

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    scale: str = "match_rms_adamw"
    """`match_rms_adamw` or `original`."""
    precision: str = "bf16"
    """`bf16` or `fp32`."""


@dataclass(frozen=True)
class MatrixLayout:
    """The matrices that a parameter holds, and how ranks divide them."""

    repeats: int = 1
    """How often the rows of `runs` follow each other: query groups of `linear_qkv` on this rank."""
    runs: tuple[int, ...] = ()
    """Rows of each matrix in one repetition; empty: the parameter is one matrix."""
    axis: int = 0
    """Axis along which ranks divide each matrix."""
    group: dist.ProcessGroup | None = None
    """The ranks; None: this rank has all of it."""
    kept: float = 1.0
    """Share of the whole that is no padding, along `axis`."""

    @classmethod
    def of(cls, linear: ColumnLinear | RowLinear, name: str) -> MatrixLayout:
        """Return the layout of the weight of a linear of a layer, whose name ends as Megatron-Core's layers have it."""
        weight, config = linear.weight, cast(TransformerConfig, linear.config)
        rows, axis = weight.shape[0], 0 if isinstance(linear, ColumnLinear) else 1
        size = get_pg_size(linear.tp_group)  # pyright: ignore[reportArgumentType]
        found = padding.of_parameter(weight)
        kept = 1.0 if found is None else found.size / (weight.shape[axis] * size)
        divided: dict[str, Any] = {"axis": axis, "group": linear.tp_group if size > 1 else None, "kept": kept}
        if name.endswith("linear_qkv"):
            heads, groups, width = config.num_attention_heads, config.num_query_groups, config.kv_channels
            assert groups is not None and width is not None
            runs = (heads // groups * width, width, width)
            assert rows % sum(runs) == 0, (name, rows, runs)
            return cls(rows // sum(runs), runs, **divided)
        if name.endswith("linear_fc1") and config.gated_linear_unit:
            return cls(1, (rows // 2, rows // 2), **divided)
        return cls(**divided)

    def apart(self, tensor: Tensor) -> list[Tensor]:
        """Return this rank's part of each matrix that a tensor in the shape of the parameter holds."""
        if not self.runs:
            return [tensor]
        parts = tensor.view(self.repeats, sum(self.runs), -1).split(self.runs, dim=1)
        return [part.reshape(-1, tensor.shape[1]) for part in parts]

    def together(self, parts: Iterable[Tensor]) -> Tensor:
        """Return the tensor whose matrices `apart` has given."""
        if not self.runs:
            return next(iter(parts))
        blocks = [part.view(self.repeats, run, -1) for part, run in zip(parts, self.runs, strict=True)]
        whole = torch.cat(blocks, dim=1)
        return whole.view(-1, whole.shape[-1])

    def changed(self, tensor: Tensor, change: Callable[[Tensor, float], Tensor]) -> Tensor:
        """Return a tensor each of whose matrices was changed as a whole; every rank of the group calls this.

        Args:
            tensor: this rank's part, in the shape of the parameter.
            change: takes a whole matrix [rows, columns], and which share of it along `axis` is no padding.
        """
        results = []
        for part in self.apart(tensor):
            if self.group is None:
                results.append(change(part, self.kept))
                continue
            ranks, held = self.group.size(), part.shape[self.axis]
            pieces = [torch.empty_like(part) for _ in range(ranks)]
            dist.all_gather(pieces, part.contiguous(), group=self.group)
            whole = change(torch.cat(pieces, dim=self.axis), self.kept)
            results.append(whole.narrow(self.axis, self.group.rank() * held, held))
        return self.together(results)


class Muon(torch.optim.Optimizer):
    """Muon over weights of linears, each with a `MatrixLayout` (`lay_out`)."""

    def __init__(self, params: Any, rule: MuonRule, lr: float, weight_decay: float = 0.0) -> None:
        """Take groups of parameters; rate and decay of a group that states none are those given here."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._rule = rule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Change every parameter: `p = p (1 - lr decay) - lr scale orthogonalised(momentum)`."""
        assert closure is None, "the loss of a step is known before"
        momentum = self._rule.momentum
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                held: Tensor = state["momentum_buffer"]
                held.lerp_(weight.grad, 1 - momentum)
                ahead = weight.grad.lerp(held, momentum) if self._rule.nesterov else held
                layout: MatrixLayout = getattr(weight, _LAYOUT)
                update = layout.changed(ahead, lambda whole, kept, axis=layout.axis: self._update(whole, kept, axis))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.to(weight.dtype), alpha=-group["lr"])

    def _update(self, whole: Tensor, kept: float, axis: int) -> Tensor:
        rule, size = self._rule, list(whole.shape)
        size[axis] = round(size[axis] * kept)
        update = orthogonalized(whole, rule.iterations, _TYPES[rule.precision])
        return update.to(whole.dtype) * scale_of(size[0], size[1], rule.scale)


def lay_out(weights: Mapping[Tensor, MatrixLayout]) -> None:
    """Note with each weight which matrices it holds, where `Muon` finds it."""
    for weight, layout in weights.items():
        setattr(weight, _LAYOUT, layout)


def matrices_of(model: nn.Module) -> dict[nn.Parameter, MatrixLayout]:
    """Return the weights of a stage that Muon changes: those of linears in layers of decoder and tower that learn.

    Raises:
        ConfigError: the layers are Transformer Engine's, which divide and fuse as this does not know.
    """
    found: dict[nn.Parameter, MatrixLayout] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if _LAYERS not in name or ".adapter" in name or not isinstance(weight, nn.Parameter) or weight.dim() != 2:
            continue
        if not isinstance(module, (ColumnLinear, RowLinear)):
            raise ConfigError(
                f"optimizer.name muon knows the layers of model.spec local, and {name} is a {type(module).__name__}: "
                "set --model.spec local"
            )
        if weight.requires_grad:
            found[weight] = MatrixLayout.of(module, name)
    return found


def build_muon(
    rule: MuonRule,
    config: OptimizerConfig,
    model: DistributedDataParallel,
    overrides: dict[Any, Any],
    groups: ProcessGroupCollection,
) -> MegatronOptimizer:
    """Build Muon for the matrices of layers and Megatron-Core's AdamW for all else that learns.

    Megatron-Core forms groups of what learns, so that either half is frozen while the other's are formed. A run whose
    layers are frozen, such as one with adapters, has AdamW alone.
    """
    matrices = matrices_of(model)
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in matrices]
    with _frozen(others):
        param_groups = _get_param_groups([model], config, overrides)
    with _frozen(matrices):
        adam: Any = get_megatron_optimizer(
            config, [model], overrides, use_gloo_process_groups=False, pg_collection=groups
        )
    if not param_groups:
        return adam
    wrapper = Float16OptimizerWithFloat16Params if config.bf16 else FP32Optimizer
    arguments = (None, _with_momentum) if config.bf16 else (_with_momentum,)
    muon: Any = wrapper(Muon(param_groups, rule, config.lr or 0.0, config.weight_decay), config, *arguments)  # type: ignore[arg-type]
    for name in ("grad_stats_parallel_group", "tp_group"):
        setattr(muon, name, getattr(adam.chained_optimizers[0], name))
    lay_out({getattr(weight, "main_param", weight): layout for weight, layout in matrices.items()})
    return ChainedOptimizer([muon, *adam.chained_optimizers])


def _with_momentum(optimizer: torch.optim.Optimizer, config: Any = None) -> None:
    """Make the state of every parameter, before a checkpoint is read into it."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let parameters that learn not learn meanwhile."""
    some = list(parameters)
    for parameter in some:
        parameter.requires_grad_(False)
    yield
    for parameter in some:
        parameter.requires_grad_(True)
