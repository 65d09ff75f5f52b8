"""Decoder layers without the modules around them, for generation: the same weights, a fraction of the Python.

A Megatron-Core layer spends several times longer in Python than in arithmetic when it is asked for one token. A
`LeanLayer` reads what its layer is made of (norms, weights, biases, activation) and runs the operations directly;
attention is handed in, or for static steps works on an arena (`decode`). On CUDA what lies between products is fused
(`megatron_v2pe/kernels`). Nothing here knows a model family: what a layer has that is not listed in `LeanLayer` is
refused when the layer is read, not left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from torch import Tensor, nn

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.kernels.decode_attention import decode_attention, enter_cache, rotate
from megatron_v2pe.kernels.norms import add_rms_norm
from megatron_v2pe.kernels.rotary import split_and_rotate, split_norm_and_rotate
from megatron_v2pe.kernels.swiglu import swiglu_forward
from megatron_v2pe.models.linear import ColumnLinear, LinearAdapter, RowLinear
from megatron_v2pe.models.norms import RMSNorm

Norm = Callable[[Tensor], Tensor]
_FEW = range(2, 17)
"""Most rows for which a product on the CPU is faster transposed; measured for 1 to 16."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query [T, groups, r, d], key [T, groups, d], value [T, groups, d]) to [T, groups, r, d]; r query heads share
a key-value head. Query and key are rotated."""


class LeanLinear:
    """A linear's weight, bias and adapter. An adapter's product is added as it runs, so nothing is kept merged."""

    def __init__(self, module: Any) -> None:
        """Read a linear."""
        self.weight: Tensor = module.weight
        self.bias: Tensor | None = module.bias
        self.adapter: LinearAdapter | None = module.linear_adapter

    def __call__(self, states: Tensor) -> Tensor:
        """Return the product of [T, in] with this rank's rows, and the bias."""
        if self.adapter is None:
            return linear(states, self.weight, self.bias)
        product = self.partial(states)
        return product if self.bias is None else product.add_(self.bias)

    def partial(self, states: Tensor) -> Tensor:
        """Return the product of [T, in] without the bias; of this rank's columns where ranks divide them."""
        product = linear(states, self.weight)
        return product if self.adapter is None else self.adapter(states, product)


class LeanLayer:
    """One layer: attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, layer: Any, number: int, group: dist.ProcessGroup) -> None:
        """Read a layer.

        Args:
            layer: Megatron-Core's, of the local spec.
            number: of the layer on this rank, from 0.
            group: the tensor-parallel group.

        Raises:
            ConfigError: the layer has parts that are not known here.
        """
        attention, mlp, config = layer.self_attention, layer.mlp, layer.config
        _check(layer)
        self.number = number
        self.group = group if group.size() > 1 else None
        self.groups, self.head_dim = attention.num_query_groups_per_partition, config.kv_channels
        self.heads_per_group = attention.num_attention_heads_per_partition // self.groups
        self.attention_norm, self.mlp_norm = lean_norm(layer.input_layernorm), lean_norm(layer.pre_mlp_layernorm)
        norms = attention.q_layernorm, attention.k_layernorm
        self.query_norm, self.key_norm = (_norm(norm) for norm in norms)
        self.qkv, self.projection = LeanLinear(attention.linear_qkv), LeanLinear(attention.linear_proj)
        self.fc1, self.fc2 = LeanLinear(mlp.linear_fc1), LeanLinear(mlp.linear_fc2)
        self.gated, self.activation = config.gated_linear_unit, mlp.activation_func
        self._cuda = self.qkv.weight.is_cuda  # on the CPU what follows is faster operation by operation, in place
        norm = layer.pre_mlp_layernorm
        self._added_norm = (norm.weight.detach(), norm.eps) if self._cuda and type(norm) is RMSNorm else None
        self._split = _split_in_one_pass(*norms) if self._cuda else None
        self._swiglu = self._cuda and self.gated and self.activation is F.silu
        self.widest: int = max(self.qkv.weight.shape[0], self.fc1.weight.shape[0])
        """A lower bound of the most numbers it holds of one token at once."""

    def __call__(self, hidden: Tensor, cos: Tensor, signed_sin: Tensor, attend: Attend) -> Tensor:
        """Run the layer.

        Args:
            hidden: [T, hidden]; may be overwritten.
            cos: [T, 1, 1, d], see `rotation`.
            signed_sin: [T, 1, 1, d], see `rotation`.
            attend: attention of this layer's queries, keys and values.

        Returns:
            [T, hidden].
        """
        joint = self._joint(hidden)
        if self._split is not None:
            half = self.head_dim // 2
            angles = cos[:, 0, 0, :half].contiguous(), signed_sin[:, 0, 0, half:].contiguous()
            query, key, value = self._split(joint, *angles)
            seen = attend(self.number, query.unflatten(1, (self.groups, -1)), key, value)
            return self._after_attention(hidden, seen)
        rotated = rotate(self._normed(joint), cos, signed_sin)
        seen = attend(self.number, rotated[:, :, :-1], rotated[:, :, -1], joint[:, :, -1])
        return self._after_attention(hidden, seen)

    def decode(
        self,
        hidden: Tensor,
        cos: Tensor,
        signed_sin: Tensor,
        cache: tuple[Tensor, Tensor],
        starts: Tensor,
        lengths: Tensor,
        longer: Tensor,
    ) -> Tensor:
        """Run the layer for one new token of each of n sequences; nothing depends on the host.

        Args:
            hidden: [n, hidden]; may be overwritten.
            cos: [n, 1, 1, d], see `rotation`.
            signed_sin: [n, 1, 1, d], see `rotation`.
            cache: this layer's keys and values, [places, groups, d]; the token's own are written to it.
            starts: int64 [n]: first place of each sequence.
            lengths: int64 [n]: places used before this token.
            longer: int64 [n]: `lengths + 1`.

        Returns:
            [n, hidden].
        """
        joint = self._joint(hidden)
        if self.query_norm is not None or self.key_norm is not None:
            joint = torch.cat([self._normed(joint), joint[:, :, -1:]], dim=2)
        query = enter_cache(joint, cos, signed_sin, *cache, starts, lengths)
        seen, _ = decode_attention(query, *cache, starts, longer, self.head_dim**-0.5)
        return self._after_attention(hidden, seen)

    def _joint(self, hidden: Tensor) -> Tensor:
        """Return queries, key and value of every group, [T, groups, r + 2, d]."""
        joint = self.qkv(self.attention_norm(hidden))
        return joint.view(-1, self.groups, self.heads_per_group + 2, self.head_dim)

    def _after_attention(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Add what attention has seen, [T, groups, r, d], then run the MLP."""
        update = self._row_parallel(seen.reshape(hidden.shape[0], -1), self.projection)
        if self._added_norm is None:
            hidden += update
            del update, seen  # what is not held any more makes room in the caches
            wide = self.fc1(self.mlp_norm(hidden))
        else:
            hidden, normed = add_rms_norm(hidden, update, *self._added_norm)
            wide = self.fc1(normed)
            del update, seen, normed
        if self._swiglu:
            wide = swiglu_forward(wide)
        elif self.gated:
            gate, straight = wide.chunk(2, dim=-1)
            wide = self.activation(gate).mul_(straight)
        else:
            wide = self.activation(wide)
        hidden += self._row_parallel(wide, self.fc2)
        return hidden

    def keys_and_values(self, hidden: Tensor, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what later tokens see of these, and nothing else of the layer.

        Args:
            hidden: [T, hidden].
            cos: [T, 1, 1, d], see `rotation`.
            signed_sin: [T, 1, 1, d], see `rotation`.

        Returns:
            Rotated keys and values, [T, groups, d] each.
        """
        if self.qkv.adapter is None:
            weight, bias = self.qkv.weight, self.qkv.bias
            joint = linear(
                self.attention_norm(hidden), self._last_two(weight), None if bias is None else self._last_two(bias)
            )
            joint = joint.view(-1, self.groups, 2, self.head_dim)
        else:
            joint = self._joint(hidden)[:, :, -2:]
        key = joint[:, :, :1] if self.key_norm is None else self.key_norm(joint[:, :, :1])
        return rotate(key, cos, signed_sin).squeeze(2), joint[:, :, 1]

    def _last_two(self, rows: Tensor) -> Tensor:
        """Return the rows of keys and values of a weight or bias of the joint projection."""
        parts = rows.view(self.groups, self.heads_per_group + 2, self.head_dim, *rows.shape[1:])
        return parts[:, -2:].flatten(0, 2)

    def _normed(self, joint: Tensor) -> Tensor:
        """Return queries and key of every group, [T, groups, r + 1, d], after the norms some models give them."""
        if self.query_norm is None and self.key_norm is None:
            return joint[:, :, :-1]
        query, key = joint[:, :, :-2], joint[:, :, -2:-1]
        query = query if self.query_norm is None else self.query_norm(query)
        return torch.cat([query, key if self.key_norm is None else self.key_norm(key)], dim=2)

    def _row_parallel(self, states: Tensor, lean: LeanLinear) -> Tensor:
        """Project this rank's columns; the sum over ranks."""
        if self.group is None:
            return lean(states)
        partial = lean.partial(states)
        dist.all_reduce(partial, group=self.group)
        return partial if lean.bias is None else partial.add_(lean.bias)


def lean_layers(layers: Sequence[nn.Module], group: dist.ProcessGroup) -> list[LeanLayer]:
    """Read this rank's decoder layers.

    Raises:
        ConfigError: a layer has parts that are not known here.
    """
    return [LeanLayer(layer, number, group) for number, layer in enumerate(layers)]


def _norm(module: nn.Module | None) -> Norm | None:
    return None if module is None or isinstance(module, IdentityOp) else lean_norm(module)


def _split_in_one_pass(query_norm: Any, key_norm: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor]] | None:
    """Return the operation that takes the joint projection apart and rotates, None where these norms have none."""
    norms = query_norm, key_norm
    if all(_norm(norm) is None for norm in norms):
        return split_and_rotate
    if not all(type(norm) is RMSNorm for norm in norms) or query_norm.eps != key_norm.eps:
        return None
    query, key = (norm.weight.detach() for norm in norms)
    return lambda joint, cos, sin: split_norm_and_rotate(joint, query, key, query_norm.eps, cos, sin)


def _check(layer: Any) -> None:
    """Refuse what `LeanLayer` would not compute."""
    attention, mlp, config = layer.self_attention, layer.mlp, layer.config
    parts = {
        "attention": (attention, SelfAttention),
        "MLP": (mlp, MLP),
        "qkv projection": (attention.linear_qkv, ColumnLinear),
        "output projection": (attention.linear_proj, RowLinear),
        "first MLP projection": (mlp.linear_fc1, ColumnLinear),
        "second MLP projection": (mlp.linear_fc2, RowLinear),
    }
    for what, (module, kind) in parts.items():
        if type(module) is not kind:
            raise ConfigError(f"generation knows no {what} of kind {type(module).__name__}; use layer spec local")
    for field, plain in (
        ("sequence_parallel", False),
        ("attention_output_gate", False),
        ("activation_func_clamp_value", None),
        ("glu_linear_offset", 0.0),
        ("apply_residual_connection_post_layernorm", False),
    ):
        if getattr(config, field, plain) != plain:
            raise ConfigError(f"generation knows no layer with {field} {getattr(config, field)}")


# The arithmetic of a layer for a few tokens, in as few calls as PyTorch allows. Each function equals the plain
# operation in exact arithmetic; which form is used depends on shapes and device alone.


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `states @ weight.T + bias` for [T, in] and [out, in].

    For 2 to 16 rows and at least as many outputs as inputs the CPU library is up to twice as fast at the transposed
    product (16384 x 2048, 8 rows, one core: 26 ms in place of 40 ms).
    """
    if states.shape[0] in _FEW and weight.shape[0] >= weight.shape[1] and not states.is_cuda:
        product = torch.mm(weight, states.t()).t().contiguous()
        return product if bias is None else product.add_(bias)
    return F.linear(states, weight, bias)


def lean_norm(norm: nn.Module) -> Norm:
    """Return a norm as a function of [T, size]; RMSNorm in float32 and float64 on CPU with half the calls.

    `x / rms(x) = x sqrt(size) / hypot(|x|, sqrt(eps size))`. Takes a copy of the weight.
    """
    if type(norm) is not RMSNorm or norm.weight.dtype not in (torch.float32, torch.float64) or norm.weight.is_cuda:
        return norm
    size = norm.weight.numel()
    scaled = norm.weight.detach() * size**0.5
    floor = torch.tensor((norm.eps * size) ** 0.5, dtype=scaled.dtype)

    def apply(states: Tensor) -> Tensor:
        return torch.div(states, torch.hypot(torch.linalg.vector_norm(states, dim=-1, keepdim=True), floor)).mul_(
            scaled
        )

    return apply


def rotation(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of `rotate` for cosines and sines [T, d // 2]: float32 [T, 1, 1, d] each."""
    return torch.cat([cos, cos], dim=-1)[:, None, None], torch.cat([-sin, sin], dim=-1)[:, None, None]
