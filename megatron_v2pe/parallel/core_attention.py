"""The layer spec's `core_attention`: rotary by explicit positions, then exact flash attention.

It replaces Megatron-Core's `DotProductAttention`, which is quadratic in memory and refuses packs. Packed sequences
(`thd`) are rotated with the angles of their `PackedSequence` and attended causally document by document; unpacked
tensors (`sbhd`, the vision tower) are attended in both directions without rotation.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_v2pe.parallel.block_attention import batched_attention, packed_causal_attention
from megatron_v2pe.parallel.packed_sequence import PackedSequence
from megatron_v2pe.v2pe.rotary import apply_rotary


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
    ) -> None:
        """Check that this configuration is one the kernels compute exactly."""
        super().__init__(config=config)
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise ValueError(f"attention dropout {dropout} is not supported; InternVL2 trains with 0")
        assert attention_type == "self", attention_type
        self.layer_number = layer_number
        self.attn_mask_type = attn_mask_type
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
            query: [S, heads, d] packed, [s, b, heads, d] otherwise.
            key: the same with this rank's key-value heads.
            value: as `key`.
            attention_mask: must be None: documents come from `packed_seq_params`.
            attn_mask_type: causal for packs, no_mask otherwise; fixed at construction.
            attention_bias: must be None.
            packed_seq_params: the pack's borders and rotary angles.

        Returns:
            [S, heads * d] packed, [s, b, heads * d] otherwise.
        """
        assert attention_mask is None and attention_bias is None, "masks come from the pack's document borders"
        if packed_seq_params is None:
            assert self.attn_mask_type == AttnMaskType.no_mask, "causal attention needs a packed sequence"
            return batched_attention(query, key, value, self.softmax_scale).flatten(2)
        pack = packed_seq_params
        assert self.attn_mask_type == AttnMaskType.causal, "packs are attended causally"
        assert pack.rotary_cos is not None and pack.rotary_sin is not None and pack.cu_seqlens_q is not None
        query = apply_rotary(query, pack.rotary_cos, pack.rotary_sin)
        key = apply_rotary(key, pack.rotary_cos, pack.rotary_sin)
        context = packed_causal_attention(query, key, value, pack.seqlens, pack.cu_seqlens_q, self.softmax_scale)
        return context.flatten(1)
