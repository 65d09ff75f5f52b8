"""Layer specs of the language model and of the vision tower: the local one for any device, Transformer Engine's.

Both hold the same distributed checkpoint: where Transformer Engine fuses a norm into the linear that follows, the
local spec stores its norm under the fused name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import nn

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.decoder_layer import DecoderLayer
from megatron_v2pe.models.linear import ColumnLinear, RowLinear
from megatron_v2pe.models.norms import HeadNorm, Norm
from megatron_v2pe.parallel.attention.core import FlashCoreAttention, TransformerEngineCoreAttention

CoreAttention = Callable[..., MegatronModule]
NormBuilder = Callable[..., nn.Module]
"""Builds a norm from `hidden_size=`, `config=` and `eps=`; the size is that of one head for queries and keys."""

FUSED_NORM_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""How the distributed checkpoint names the norms before qkv and fc1, whichever spec wrote it."""


def transformer_engine_installed() -> bool:
    """Tell whether Transformer Engine can be imported."""
    return find_spec("transformer_engine") is not None


def choose_spec(name: str, on_cuda: bool) -> str:
    """Resolve `auto` to `te` on CUDA with Transformer Engine installed, to `local` otherwise.

    Raises:
        ConfigError: unknown name, or `te` without Transformer Engine or without CUDA.
    """
    if name not in ("auto", "local", "te"):
        raise ConfigError(f"layer spec {name!r} is none of auto, local, te")
    usable = on_cuda and transformer_engine_installed()
    if name == "te" and not usable:
        missing = "Transformer Engine is not installed" if on_cuda else "Transformer Engine needs CUDA"
        raise ConfigError(f"layer spec te was asked for, but {missing}; use local")
    return ("te" if usable else "local") if name == "auto" else name


def layer_spec(
    spec: str,
    mask: AttnMaskType,
    layer: type[TransformerLayer] | None = None,
    keep_attention: bool = False,
    query_norm: NormBuilder = IdentityOp,
    key_norm: NormBuilder = IdentityOp,
    qkv_bias: bool | None = None,
) -> ModuleSpec:
    """Return the spec of one transformer layer.

    The norms before attention and MLP are those that `normalization` of the layer's configuration names.

    Args:
        spec: `local` or `te`.
        mask: causal for the language model, no_mask for the vision tower.
        layer: the layer class, where a layer has something of its own; the decoder's by default.
        keep_attention: a recomputed layer does not compute attention again, see `FlashCoreAttention`.
        query_norm: norm of the queries, given and returned as [S, batch, this rank's heads, head size]; none by
            default. One over all heads together sums over the tensor-parallel ranks itself.
        key_norm: norm of the keys, likewise.
        qkv_bias: whether the joint projection to queries, keys and values has a bias. None: it has one where the
            layer's configuration asks for one anywhere (`add_bias_linear`) or here (`add_qkv_bias`).

    Raises:
        ConfigError: norms of queries and keys that the decoder's layer does not compute.
    """
    norms = query_norm, key_norm
    if spec == "te":
        return _te_layer(mask, layer or TransformerLayer, norms, qkv_bias)
    kind = layer or DecoderLayer
    if issubclass(kind, DecoderLayer) and norms not in ((IdentityOp, IdentityOp), (HeadNorm, HeadNorm)):
        raise ConfigError(
            "norms of queries and keys: a decoder layer of spec local computes HeadNorm of both, or none of either"
        )
    return _local_layer(mask, kind, partial(FlashCoreAttention, keep_result=keep_attention), norms, qkv_bias)


def block_spec(layers: list[ModuleSpec], final_norm: bool) -> TransformerBlockSubmodules:
    """Return the spec of a stack of layers, with our norm at its end where there is one."""
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=Norm if final_norm else None)


def _local_layer(
    mask: AttnMaskType,
    layer: type[TransformerLayer],
    attention: CoreAttention,
    norms: tuple[NormBuilder, NormBuilder],
    qkv_bias: bool | None,
) -> ModuleSpec:
    return ModuleSpec(
        module=layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=_attention(mask, _joint(ColumnLinear, qkv_bias), RowLinear, attention, norms),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=_mlp(ColumnLinear, RowLinear),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=FUSED_NORM_NAMES,
        ),
    )


def _te_layer(
    mask: AttnMaskType,
    layer: type[TransformerLayer],
    norms: tuple[NormBuilder, NormBuilder],
    qkv_bias: bool | None,
) -> ModuleSpec:
    """Return a layer of Transformer Engine's linears, norms fused in, and its attention; not run without a GPU."""
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    backend = TESpecProvider()
    fused_column, row = backend.column_parallel_layer_norm_linear(), backend.row_parallel_linear()
    causal = mask == AttnMaskType.causal
    attention = TransformerEngineCoreAttention if causal else FlashCoreAttention
    return ModuleSpec(
        module=layer,
        submodules=TransformerLayerSubmodules(
            self_attention=_attention(mask, _joint(fused_column, qkv_bias), row, attention, norms),
            self_attn_bda=get_bias_dropout_add,
            mlp=_mlp(fused_column, row),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def _joint(column: type, bias: bool | None) -> Callable[..., nn.Module]:
    """Return what builds the joint projection; Megatron-Core's attention asks for a bias where any linear has one."""
    return column if bias is None else lambda *sizes, **settings: column(*sizes, **{**settings, "bias": bias})


def _attention(
    mask: AttnMaskType,
    column: Callable[..., nn.Module],
    row: type,
    core_attention: CoreAttention,
    norms: tuple[NormBuilder, NormBuilder],
) -> ModuleSpec:
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=column,
            core_attention=core_attention,
            linear_proj=row,
            q_layernorm=norms[0],
            k_layernorm=norms[1],
        ),
    )


def _mlp(column: type, row: type) -> ModuleSpec:
    return ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row))
