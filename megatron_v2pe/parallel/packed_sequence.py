"""What every layer must know of a packed micro-batch: document borders and rotary angles.

It extends Megatron-Core's `PackedSeqParams`, which attention layers receive as one object and which survives
activation recompute. Lengths stand as Python integers beside the tensors, so that nothing has to be read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class PackedSequence(PackedSeqParams):
    """Document borders and rotary cosines and sines of one pack of S tokens."""

    seqlens: tuple[int, ...] = ()
    """Document lengths, summing to S."""
    rotary_cos: Tensor | None = None
    """float32 [S, head_dim // 2]; computed once per forward, shared by all layers."""
    rotary_sin: Tensor | None = None
    """float32 [S, head_dim // 2]."""

    @classmethod
    def build(cls, seqlens: Sequence[int], cos: Tensor, sin: Tensor) -> PackedSequence:
        """Describe a pack of documents of the given lengths.

        Args:
            seqlens: document lengths in tokens, summing to S.
            cos: float32 [S, head_dim // 2].
            sin: float32 [S, head_dim // 2].
        """
        lengths = tuple(int(length) for length in seqlens)
        assert sum(lengths) == cos.shape[0], f"documents of {sum(lengths)} tokens, rotary table of {cos.shape[0]}"
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=cos.device)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=max(lengths),
            max_seqlen_kv=max(lengths),
            seqlens=lengths,
            rotary_cos=cos,
            rotary_sin=sin,
        )
