"""LoRA: a linear's product plus a product of low rank, of which alone the factors learn.

    result = states @ weight.T + scaling * (dropout(states) @ lora_A.T) @ lora_B.T

with scaling alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (arXiv 2106.09685, 2312.03732). A linear has
one pair of factors, or one for each of several *pieces*, sets of its output rows: where a Hugging Face model has three
projections for queries, keys and values, each has a pair of its own there, while one linear holds them all here.

The factors stay in float32 (or wider) whatever the type of the weights, and so are their products. Under tensor
parallelism they are divided as their linear: `lora_B` by rows in a column-parallel one, `lora_A` by columns in a
row-parallel one. What is whole on every rank has the sum of the ranks' gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.utils import get_pg_size
from torch import Tensor, nn

from megatron_v2pe.base.keyed_random import seed_of
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models import padding
from megatron_v2pe.models.adapters import adaptable_linears, attach
from megatron_v2pe.models.fusion import fire_forward_hooks, in_turn
from megatron_v2pe.models.linear import ColumnLinear, LinearAdapter, RowLinear
from megatron_v2pe.models.lora_plan import WHOLE, LinearPiece, LowRank, LowRankPlan
from megatron_v2pe.parallel.token_draws import TokenDraws

_ENTRIES = 1 << 24
"""Entries of a matrix of tokens and columns that are worked on at a time in float32: 64 MiB."""


class LowRankPair(nn.Module):
    """The factors of one piece, which keep their type when a model is cast to a narrower one."""

    def __init__(self, lora_a: Tensor, lora_b: Tensor) -> None:
        """Hold `lora_A` [rank, in] and `lora_B` [out, rank]."""
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(lora_a), nn.Parameter(lora_b)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LowRankPair:
        def wide(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            kept = torch.promote_types(changed.dtype, tensor.dtype)
            return changed if changed.dtype == kept else tensor.to(changed.device, kept)

        return super()._apply(wide, recurse)


class LowRankAdapter(LinearAdapter):
    """The pairs of factors of a linear, by name of the piece: `<linear>.adapter.<piece>.lora_A` and `lora_B`."""

    def __init__(
        self, name: str, linear: ColumnLinear | RowLinear, pieces: Sequence[LinearPiece], settings: LowRank, seed: int
    ) -> None:
        """Draw `lora_A` as `nn.Linear` draws its weight, by a key, so that every layout has the same; `lora_B` is zero.

        Args:
            name: of the linear in the whole model; draws and dropout depend on it.
            linear: that is to carry the adapter.
            pieces: which of its rows have a pair.
            settings: rank, scaling and dropout.
            seed: of the draws.

        Raises:
            ConfigError: the rank is larger than the linear is wide; both numbers are named.
        """
        assert linear.tp_group is not None
        super().__init__(cast(Any, linear.tp_group))
        self.name, self.settings, self.pieces = name, settings, tuple(pieces)
        outputs, inputs = linear.weight.shape
        ranks, rank = get_pg_size(self.tp_group), self.tp_group.rank()
        self.column = column = isinstance(linear, ColumnLinear)
        known = padding.of_parameter(linear.weight)
        whole_out, whole_in = outputs * (ranks if column else 1), inputs * (1 if column else ranks)
        if known is not None:
            whole_out, whole_in = (known.size, whole_in) if column else (whole_out, known.size)
        self.first_column = 0 if column else rank * inputs
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        for piece in self.pieces:
            smallest = min(whole_in, piece.rows_of(whole_out))
            if settings.rank > smallest:
                where = name if piece == WHOLE else f"{name} ({piece.name})"
                raise ConfigError(
                    f"adapter rank {settings.rank} is larger than {where}, which is {piece.rows_of(whole_out)} x "
                    f"{whole_in}: choose at most {smallest}, or leave this linear out of adapter.targets"
                )
            drawn = _drawn(f"{name}.{piece.name}", settings.rank, whole_in, seed)
            if not column:
                drawn = nn.functional.pad(drawn, (0, ranks * inputs - whole_in))
                drawn = drawn[:, self.first_column : self.first_column + inputs]
            b = torch.zeros(piece.rows_of(outputs), settings.rank, dtype=dtype)
            self.add_module(piece.name, LowRankPair(drawn.to(dtype).contiguous(), b))
        if ranks > 1:
            factor, axis = ("lora_B", 0) if column else ("lora_A", 1)
            self.sharded_axes = {f"{piece.name}.{factor}": axis for piece in self.pieces}
            gated = column and name.endswith("linear_fc1") and getattr(linear.config, "gated_linear_unit", False)
            self.gated = tuple(f"{piece.name}.lora_B" for piece in self.pieces if gated and piece.of == 1)
            for piece, pair in self.pairs():
                size = piece.rows_of(whole_out) if column else whole_in
                padding.mark(getattr(pair, factor), axis, size, self.tp_group)

    def pairs(self) -> Iterator[tuple[LinearPiece, LowRankPair]]:
        """Yield every piece with its factors."""
        for piece in self.pieces:
            yield piece, cast(LowRankPair, self._modules[piece.name])

    def forward(self, states: Tensor, product: Tensor) -> Tensor:
        """Return `product` with the product of low rank added; see `LinearAdapter.forward`."""
        draws = self.draws if self.training and self.settings.dropout else None
        assert draws is not None or not (self.training and self.settings.dropout), f"{self.name}: no key for dropout"
        factors = []
        for _, pair in self.pairs():
            fire_forward_hooks(pair)  # it is not called, and what waits for gathered weights is a hook of its
            factors.append((in_turn(pair.lora_A), in_turn(pair.lora_B)))
        down = torch.cat([cast(Tensor, a) for a, _ in factors]) if len(factors) > 1 else cast(Tensor, factors[0][0])
        ups = [cast(Tensor, b) for _, b in factors]
        if self.column:
            down = self.shared(down)
        else:
            ups = [self.shared(up) for up in ups]
        how = _How(self.name, self.pieces, self.settings, draws, self.first_column)
        return _LowRankProduct.apply(states, product, how, down, *ups)

    @property
    def needs_draws(self) -> bool:  # type: ignore[override]
        """Whether it has dropout."""
        return self.settings.dropout > 0

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight that gives the adapter's result by itself, in the type of `weight`."""
        with torch.no_grad():
            wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for piece, pair in self.pairs():
                part = piece.part(wide.t()).permute(1, 2, 0)
                part += (pair.lora_B @ pair.lora_A).mul_(self.settings.scaling).view(part.shape)
            return wide.to(weight.dtype)


@dataclass(frozen=True)
class _How:
    """What `_LowRankProduct` does, beside its tensors."""

    name: str
    pieces: tuple[LinearPiece, ...]
    settings: LowRank
    draws: TokenDraws | None
    first_column: int

    def seen(self, states: Tensor, first: int, dtype: torch.dtype) -> Tensor:
        """Return what `lora_A` sees of [n, in] states that begin with the `first`-th row."""
        wide = states.to(dtype)
        return wide if self.draws is None else wide * self.factors(states, first, dtype)

    def factors(self, states: Tensor, first: int, dtype: torch.dtype) -> Tensor:
        """Return 0 where an entry is dropped, else 1 / (1 - rate)."""
        assert self.draws is not None
        columns = range(self.first_column, self.first_column + states.shape[1])
        rate = self.settings.dropout
        keep = self.draws.keep(self.name, slice(first, first + states.shape[0]), columns, rate)
        return keep.to(dtype).mul_(1 / (1 - rate))


class _LowRankProduct(torch.autograd.Function):
    """Keeps the states, which a frozen linear keeps no copy of, and a token's `rank` numbers; both in chunks."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, product: Tensor, how: _How, down: Tensor, *ups: Tensor) -> Tensor:
        rows, result = states.flatten(0, -2), product.flatten(0, -2).clone()
        inner = down.new_empty(rows.shape[0], down.shape[0])
        for chunk in _chunks(rows, result):
            torch.mm(how.seen(rows[chunk], chunk.start, down.dtype), down.t(), out=inner[chunk])
            for piece, up, own in zip(how.pieces, ups, inner[chunk].chunk(len(ups), dim=1), strict=True):
                part = piece.part(result[chunk])
                part += (own @ up.t()).mul_(how.settings.scaling).view(part.shape)
        ctx.save_for_backward(rows, inner, down, *ups)
        ctx.how, ctx.shape = how, states.shape
        return result.view(product.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, inner, down, *ups = ctx.saved_tensors
        how: _How = ctx.how
        for_states, for_product = ctx.needs_input_grad[:2]
        flat = gradient.flatten(0, -2)
        states_gradient = torch.empty_like(rows, memory_format=torch.contiguous_format) if for_states else None
        down_gradient, up_gradients = torch.zeros_like(down), [torch.zeros_like(up) for up in ups]
        for chunk in _chunks(rows, flat):
            inner_gradients = []
            for piece, up, own, total in zip(
                how.pieces, ups, inner[chunk].chunk(len(ups), dim=1), up_gradients, strict=True
            ):
                part = piece.part(flat[chunk]).flatten(1).to(up.dtype).mul(how.settings.scaling)
                total.addmm_(part.t(), own)
                inner_gradients.append(part @ up)
            inner_gradient = torch.cat(inner_gradients, dim=1)
            down_gradient.addmm_(inner_gradient.t(), how.seen(rows[chunk], chunk.start, down.dtype))
            if states_gradient is not None:
                change = inner_gradient @ down
                if how.draws is not None:
                    change *= how.factors(rows[chunk], chunk.start, down.dtype)
                states_gradient[chunk] = change
        of_states = None if states_gradient is None else states_gradient.view(ctx.shape)
        return of_states, gradient if for_product else None, None, down_gradient, *up_gradients


def _chunks(rows: Tensor, result: Tensor) -> Iterator[slice]:
    """Yield which rows of [n, in] and [n, out] are worked on together."""
    size = max(1, _ENTRIES // max(rows.shape[1], result.shape[1]))
    for first in range(0, rows.shape[0], size):
        yield slice(first, min(first + size, rows.shape[0]))


def _drawn(name: str, rank: int, inputs: int, seed: int) -> Tensor:
    """Return a matrix [rank, inputs] as `nn.Linear` draws it: uniform within 1 / sqrt(inputs), float32."""
    generator = torch.Generator().manual_seed(seed_of(seed, name, purpose="adapter"))
    bound = 1 / math.sqrt(inputs)
    return torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)


def put_adapters(plan: LowRankPlan, stage: nn.Module) -> None:
    """Put the adapters of a plan on the linears of this rank's stage.

    Raises:
        ConfigError: a rank is larger than a linear is wide.
    """
    for name, linear in adaptable_linears(stage).items():
        if name in plan.pieces:
            settings = plan.settings[name.split(".")[0]]
            attach(linear, name, LowRankAdapter(name, linear, plan.pieces[name], settings, plan.seed))
