"""The layer spec's `core_attention`: rotary by explicit positions, then exact flash attention, on one rank or many.

It replaces Megatron-Core's `DotProductAttention`, which is quadratic in memory, refuses packs and context parallelism.
Packed sequences (`thd`) are rotated with the angles of their `PackedSequence` and attended causally document by
document, over the context-parallel group by a ring or by all-to-all; unpacked tensors (`sbhd`, the vision tower) are
attended in both directions without rotation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from megatron_v2pe.errors import ConfigError, LayoutError
from megatron_v2pe.kernels.rotary import apply_rotary
from megatron_v2pe.parallel.attention.attention_backend import ATTENTION_BACKENDS
from megatron_v2pe.parallel.attention.context_parallel import exchange_named
from megatron_v2pe.parallel.attention.largest_logit import LogitWatch
from megatron_v2pe.parallel.packed_sequence import PackedSequence


class FlashCoreAttention(MegatronModule):
    """Attention over this rank's heads. Holds no parameters."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        keep_result: bool = False,
    ) -> None:
        """Check that this configuration is one the kernels compute exactly.

        Raises:
            ConfigError: attention dropout, fused rotary embedding, or an unknown `cp_comm_type`.
        """
        super().__init__(config=config)
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        refuse_inexact(config, dropout)
        assert attention_type == "self", attention_type
        self.layer_number = layer_number
        self.attn_mask_type = attn_mask_type
        self.cp_comm_type = cp_comm_type or "p2p"
        self.exchange = exchange_named(self.cp_comm_type)
        self.cp_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.keep_result = keep_result
        """Carry results of a recomputed layer from its forward pass to its recompute (`PackedSequence.kept`)."""
        self.backend: str = getattr(config, "attention_kernels", "auto")
        """Value of `parallel.attention_backend`; Megatron-Core's setting of that name chooses among its own kernels."""
        self.watch: LogitWatch | None = None
        """Called with the queries and keys of every pack; None: nobody looks."""
        assert config.kv_channels is not None
        self.softmax_scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequence | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, heads, d] packed, this context-parallel rank's tokens; [s, b, heads, d] otherwise.
            key: the same with this rank's key-value heads.
            value: as `key`.
            attention_mask: must be None: documents come from `packed_seq_params`.
            attn_mask_type: causal for packs, no_mask otherwise; fixed at construction.
            attention_bias: must be None.
            packed_seq_params: the pack's layout and rotary angles.

        Returns:
            [S, heads * d] packed, [s, b, heads * d] otherwise.
        """
        assert attention_mask is None and attention_bias is None, "masks come from the pack's document borders"
        if packed_seq_params is None:
            assert self.attn_mask_type == AttnMaskType.no_mask, "causal attention needs a packed sequence"
            return batched_attention(query, key, value, self.softmax_scale, self.backend).flatten(2)
        assert self.attn_mask_type == AttnMaskType.causal, "packs are attended causally"
        query, key = rotated(query, key, packed_seq_params)
        return self.attend(query, key, value, packed_seq_params).flatten(1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pack: PackedSequence) -> Tensor:
        """Attend over a pack.

        Args:
            query: [S, heads, d], this context-parallel rank's tokens, rotated.
            key: the same with this rank's key-value heads, rotated.
            value: as `key`, not rotated.
            pack: the pack's layout.

        Returns:
            [S, heads, d].
        """
        assert pack.layout is not None
        if self.watch is not None:
            self.watch(self.layer_number, query, key, pack, self.softmax_scale, self.cp_group)
        kept = pack.kept.pop(self.layer_number, None) if torch.is_grad_enabled() else None
        output, result = self.exchange.attend(
            query, key, value, pack, self.cp_group, self.softmax_scale, kept, self.backend
        )
        if self.keep_result and self.training and not torch.is_grad_enabled():
            pack.kept[self.layer_number] = result
        return output


class TransformerEngineCoreAttention(MegatronModule):
    """Transformer Engine's attention under the same layout and the same explicit positions.

    Its context parallelism cuts packs as `ZigzagLayout` does. It does not run on a machine without a GPU.
    """

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, **kwargs: Any
    ) -> None:
        """Build Transformer Engine's attention.

        Raises:
            ConfigError: attention dropout or fused rotary embedding.
        """
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        super().__init__(config=config)
        dropout = kwargs.get("attention_dropout")
        refuse_inexact(config, config.attention_dropout if dropout is None else dropout)
        self.inner = TEDotProductAttention(config, layer_number, attn_mask_type, **kwargs)
        self.layer_number, self.attn_mask_type = layer_number, attn_mask_type
        self.cp_group = kwargs["pg_collection"].cp if config.context_parallel_size > 1 else None
        scale = kwargs.get("softmax_scale")
        assert config.kv_channels is not None
        self.softmax_scale: float = config.kv_channels**-0.5 if scale is None else scale
        self.watch: LogitWatch | None = None
        """Called with the queries and keys of every pack; None: nobody looks."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequence | None = None,
    ) -> Tensor:
        """Attend over a pack; arguments and result are those of `FlashCoreAttention`."""
        assert packed_seq_params is not None and attention_bias is None
        query, key = rotated(query, key, packed_seq_params)
        if self.watch is not None:
            self.watch(self.layer_number, query, key, packed_seq_params, self.softmax_scale, self.cp_group)
        names = PackedSeqParams.__dataclass_fields__  # without ours, which Transformer Engine would not take
        plain = PackedSeqParams(**{name: getattr(packed_seq_params, name) for name in names})
        return self.inner(query, key, value, None, AttnMaskType.padding_causal, packed_seq_params=plain)


def rotated(query: Tensor, key: Tensor, pack: PackedSequence) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by a pack's angles.

    Raises:
        LayoutError: the pack's documents, or its angles, do not cover the tokens.
    """
    cos, sin = angles(pack, query.shape[0])
    return apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)


def angles(pack: PackedSequence, tokens: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of a pack's tokens, float32 [S, d // 2] twice.

    Raises:
        LayoutError: the pack's documents, or its angles, do not cover the tokens.
    """
    assert pack.layout is not None and pack.rotary_cos is not None and pack.rotary_sin is not None
    covered, known = pack.layout.num_local_tokens, pack.rotary_cos.shape[0]
    if not tokens == covered == known:
        raise LayoutError(
            f"attention over {tokens} tokens, but the pack's documents cover {covered} and its positions {known}"
        )
    return pack.rotary_cos, pack.rotary_sin


def batched_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, backend: str = "auto") -> Tensor:
    """Attend in both directions inside each element of a batch (the vision tower: one tile each).

    On CUDA PyTorch's operator runs the first kernel that takes the tensors: cuDNN's, which was measured to be the
    fastest for tiles (324 against 237 TFLOP/s forward, 303 against 185 backward), then flash, then the others.

    Args:
        query: [s, b, heads, d].
        key: [s, b, groups, d].
        value: [s, b, groups, d].
        scale: factor on the scores.
        backend: value of `parallel.attention_backend`.

    Returns:
        [s, b, heads, d].
    """
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    if query.device.type == "cpu":
        output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)[0]
    else:
        with sdpa_kernel(ATTENTION_BACKENDS.get(backend).tile_kernels(), set_priority=True):
            output = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return output.permute(2, 0, 1, 3)


def refuse_inexact(config: TransformerConfig, dropout: float) -> None:
    """Refuse settings that would change attention silently.

    Raises:
        ConfigError: attention dropout; or fused rotary embedding, which counts positions by itself.
    """
    if dropout:
        raise ConfigError(f"attention dropout {dropout} is not supported; InternVL trains with 0")
    if config.apply_rope_fusion:
        raise ConfigError("apply_rope_fusion counts positions from 0 in every document; V2PE gives them explicitly")
