"""Attention of one new token of each sequence over a cache of keys and values, and the new token's entry into it.

Every sequence has a run of places in one long cache; where its run starts and how much of it is used are tensors, so
that the work of a step is the same calls whatever the lengths (which is what a CUDA graph needs). On CUDA the keys of a
sequence are cut into splits, as many as fill the card's multiprocessors; the query heads of a group are served by one
reading of its keys, and a second kernel merges the splits by log-sum-exp.

What it costs is reading: InternVL2-2B in bf16 has 24 layers x 8 groups x 128 x 2 (keys and values) x 2 bytes = 98,304
bytes a token, 12.9 GB at 131,072 tokens, beside 3.8 GB of weights. 80 tokens/s of one sequence of that length are 1.3
TB/s; 300 tokens/s with little in the cache are 1.1 TB/s, of the 3.35 an H100 is sold with. That is arithmetic: the
kernels were compared with their plain forms in Triton's interpreter, compiled for two cards and not run on one
(`tests/unit/kernels/test_decode_attention.py` runs them where there is one).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_v2pe.kernels.choice import use_triton

FLOOR = torch.finfo(torch.float32).min / 2
"""Log-sum-exp over no keys: finite, so that two empty shares merge without a NaN."""


def decode_attention(
    query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend with one token of each of n sequences to all that is cached of its sequence.

    Args:
        query: [n, groups, r, d]; r query heads share a key-value head.
        keys: [places, groups, d], contiguous.
        values: as `keys`.
        starts: int64 [n]: first place of each sequence.
        lengths: int64 [n]: places of each sequence that are used, 0 or more.
        scale: factor on the scores, usually `d ** -0.5`.

    Returns:
        The output [n, groups, r, d] in the type of `query` and its log-sum-exp [n, groups, r] in float32 or wider;
        zeros and `FLOOR` where nothing is cached.
    """
    if use_triton(query, keys, values):
        from megatron_v2pe.kernels.gpu import decode_attention as gpu

        return gpu.attend(query.contiguous(), keys, values, starts, lengths, scale)
    wide = torch.promote_types(query.dtype, torch.float32)
    output = query.new_zeros(query.shape)
    lse = torch.full(query.shape[:-1], FLOOR, dtype=wide, device=query.device)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        if length:
            mine = slice(start, start + length)
            scores = torch.einsum("grd,lgd->grl", query[row].to(wide), keys[mine].to(wide)) * scale
            lse[row] = scores.logsumexp(-1)
            weights = (scores - lse[row].unsqueeze(-1)).exp()
            output[row] = torch.einsum("grl,lgd->grd", weights, values[mine].to(wide)).to(query.dtype)
    return output, lse


def enter_cache(
    joint: Tensor, cos: Tensor, signed_sin: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor
) -> Tensor:
    """Rotate the queries and the key of a new token of each sequence; write key and value behind what is cached.

    Args:
        joint: [n, groups, r + 2, d]: of each group the queries, the key, the value.
        cos: [n, 1, 1, d], see `rotate`.
        signed_sin: [n, 1, 1, d].
        keys: [places, groups, d], contiguous; written to at `starts + lengths`.
        values: as `keys`.
        starts: int64 [n].
        lengths: int64 [n]: places used before this token.

    Returns:
        Rotated queries [n, groups, r, d].
    """
    if use_triton(joint, keys, values):
        from megatron_v2pe.kernels.gpu import decode_attention as gpu

        return gpu.enter(joint.contiguous(), cos.contiguous(), signed_sin.contiguous(), keys, values, starts, lengths)
    rotated, places = rotate(joint[:, :, :-1], cos, signed_sin), starts + lengths
    keys.index_copy_(0, places, rotated[:, :, -1])
    values.index_copy_(0, places, joint[:, :, -1])
    return rotated[:, :, :-1]


def rotate(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate [T, groups, heads, d], in float32 or wider; equals `v2pe.rotary.apply_rotary`.

    Args:
        states: of any floating type.
        cos: [T, 1, 1, d]: factors of a number itself, the cosines twice.
        signed_sin: [T, 1, 1, d]: factors of its partner, minus the sines and then the sines.
    """
    wide = states.to(torch.promote_types(states.dtype, cos.dtype))
    turned = (wide * cos).addcmul_(wide.roll(wide.shape[-1] // 2, -1), signed_sin)
    return turned.to(states.dtype)
