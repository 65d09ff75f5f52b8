"""What every layer must know of a packed micro-batch: who holds which tokens, and rotary angles.

It extends Megatron-Core's `PackedSeqParams`, which attention layers receive as one object and which survives
activation recompute. Lengths stand as Python integers beside the tensors, so that nothing has to be read back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.parallel.attention.block import AttentionResult
from megatron_v2pe.parallel.token_draws import TokenDraws
from megatron_v2pe.parallel.zigzag import ZigzagLayout


@dataclass
class PackedSequence(PackedSeqParams):
    """Document borders, and cosines and sines of the S tokens this context-parallel rank holds.

    The fields of Megatron-Core's class (`cu_seqlens_q`, ...) describe the whole padded pack, as Transformer Engine
    expects them under context parallelism.
    """

    layout: ZigzagLayout | None = None
    rotary_cos: Tensor | None = None
    """float32 [S, head_dim // 2]; computed once per forward, shared by all layers."""
    rotary_sin: Tensor | None = None
    """float32 [S, head_dim // 2]."""
    documents_in_order: Tensor | None = None
    """int64 [S x context_parallel_size]: see `ZigzagLayout.documents_in_order`; None where it is not needed."""
    draws: TokenDraws | None = None
    """Names what adapters draw for the S tokens; None where they draw nothing."""
    kept: dict[int, AttentionResult] = field(default_factory=dict)
    """Attention results by layer number, on their way from a layer's forward pass to its recompute."""

    @classmethod
    def build(cls, layout: ZigzagLayout, cos: Tensor, sin: Tensor, documents_in_order: bool = False) -> PackedSequence:
        """Describe a pack.

        Args:
            layout: documents and who holds their tokens.
            cos: float32 [S, head_dim // 2].
            sin: float32 [S, head_dim // 2].
            documents_in_order: whether the exchange of context-parallel ranks needs to know the documents' order.
        """
        assert cos.shape[0] == layout.num_local_tokens, f"{cos.shape[0]} angles, {layout.num_local_tokens} tokens"
        borders = to_device(torch.tensor(layout.cu_seqlens, dtype=torch.int32), cos.device)
        longest = max(layout.seqlens)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=borders,
            cu_seqlens_kv=borders,
            cu_seqlens_q_padded=borders,
            cu_seqlens_kv_padded=borders,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            layout=layout,
            rotary_cos=cos,
            rotary_sin=sin,
            documents_in_order=to_device(layout.documents_in_order(), cos.device) if documents_in_order else None,
        )
