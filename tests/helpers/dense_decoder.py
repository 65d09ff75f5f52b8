"""A decoder written out plainly: one document, explicit positions, every score in one matrix, all in float64.

It knows nothing of the package: weights arrive by the published names, fields are those of an `llm_config`, and the
scalings of rotary angles are written here a second time, pair by pair, from the papers and model cards that state them.
Positions may be fractions, as V2PE has them, which no published class of these models computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PREFIX = "language_model.model."


def logits(
    llm: Mapping[str, Any], weights: Mapping[str, Tensor], ids: Tensor, positions: Tensor, scaled: bool
) -> Tensor:
    """Return the logits [S, vocab_size] of a document.

    Args:
        llm: fields of the `llm_config`; names of tensors are Llama's, or Phi-3's where those stand in `weights`.
        weights: float64, by the published names.
        ids: int64 [S].
        positions: float64 [S].
        scaled: whether dynamic scaling is used; all other kinds are.
    """
    heads, width = llm["num_attention_heads"], llm["hidden_size"]
    groups = llm.get("num_key_value_heads", heads)
    head_dim = llm.get("head_dim") or width // heads
    frequencies, factor = rotary(llm, head_dim, float(positions.max()) + 1, scaled)
    angles = positions[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    turn = torch.polar(torch.full_like(angles, factor), angles)  # [S, d / 2], complex
    hidden = weights[_PREFIX + "embed_tokens.weight"][ids]
    later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for number in range(llm["num_hidden_layers"]):
        layer = {name.removeprefix(f"{_PREFIX}layers.{number}."): tensor for name, tensor in weights.items()}
        normed = _norm(hidden, layer["input_layernorm.weight"], llm["rms_norm_eps"])
        sizes = (heads * head_dim, groups * head_dim, groups * head_dim)
        query, key, value = _query_key_value(layer, normed, sizes)
        query, key = query.view(len(ids), heads, head_dim), key.view(len(ids), groups, head_dim)
        if "self_attn.q_norm.weight" in layer:
            query = _norm(query, layer["self_attn.q_norm.weight"], llm["rms_norm_eps"])
            key = _norm(key, layer["self_attn.k_norm.weight"], llm["rms_norm_eps"])
        query, key = _turned(query, turn), _turned(key, turn)
        attended = []
        for head in range(heads):
            group = head * groups // heads
            scores = query[:, head] @ key[:, group].T / math.sqrt(head_dim)
            shares = scores.masked_fill(later, -math.inf).softmax(-1)
            attended.append(shares @ value.view(len(ids), groups, head_dim)[:, group])
        hidden = hidden + torch.cat(attended, 1) @ layer["self_attn.o_proj.weight"].T
        normed = _norm(hidden, layer["post_attention_layernorm.weight"], llm["rms_norm_eps"])
        gate, up = _gate_up(layer, normed)
        hidden = hidden + (gate * gate.sigmoid() * up) @ layer["mlp.down_proj.weight"].T
    hidden = _norm(hidden, weights[_PREFIX + "norm.weight"], llm["rms_norm_eps"])
    tied = llm.get("tie_word_embeddings", False)
    return hidden @ weights[_PREFIX + "embed_tokens.weight" if tied else "language_model.lm_head.weight"].T


def rotary(llm: Mapping[str, Any], head_dim: int, length: float, scaled: bool) -> tuple[list[float], float]:
    """Return radians by position of every pair, and what cosines and sines are multiplied by."""
    rope, base, pairs = llm.get("rope_scaling") or {}, llm["rope_theta"], range(head_dim // 2)
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor", 1.0)
    trained = llm.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    if kind == "dynamic" and scaled and length > llm["max_position_embeddings"]:
        stretch = factor * length / llm["max_position_embeddings"] - factor + 1
        base *= stretch ** (head_dim / (head_dim - 2))
    plain = [base ** (-2 * pair / head_dim) for pair in pairs]
    if kind == "linear":
        return [radians / factor for radians in plain], 1.0
    if kind == "llama3":
        low, high, found = rope["low_freq_factor"], rope["high_freq_factor"], []
        for radians in plain:
            wavelength = 2 * math.pi / radians
            if wavelength < trained / high:
                found.append(radians)
            elif wavelength > trained / low:
                found.append(radians / factor)
            else:
                smooth = (trained / wavelength - low) / (high - low)
                found.append((1 - smooth) * radians / factor + smooth * radians)
        return found, 1.0
    if kind == "yarn":
        ends = [head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1)]
        first, last = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), head_dim - 1)
        slow = [min(max((pair - first) / (last - first), 0), 1) for pair in pairs]
        mixed = [radians * (1 - part) + radians / factor * part for radians, part in zip(plain, slow, strict=True)]
        return mixed, 0.1 * math.log(factor) + 1
    if kind in ("longrope", "su"):
        divisors = rope["long_factor"] if length > trained else rope["short_factor"]
        longer = llm["max_position_embeddings"] / trained
        ratio = math.sqrt(1 + math.log(longer) / math.log(trained))
        return [radians / divisor for radians, divisor in zip(plain, divisors, strict=True)], ratio
    assert kind in (None, "dynamic"), kind
    return plain, 1.0


def _norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _turned(states: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs (i, i + d / 2) of every head [S, heads, d], as complex numbers."""
    half = states.shape[-1] // 2
    turned = torch.complex(states[..., :half], states[..., half:]) * turn[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def _query_key_value(layer: Mapping[str, Tensor], normed: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    if "self_attn.qkv_proj.weight" in layer:
        return (normed @ layer["self_attn.qkv_proj.weight"].T).split(sizes, -1)
    found = []
    for part in "qkv":
        states = normed @ layer[f"self_attn.{part}_proj.weight"].T
        bias = layer.get(f"self_attn.{part}_proj.bias")
        found.append(states if bias is None else states + bias)
    return tuple(found)


def _gate_up(layer: Mapping[str, Tensor], normed: Tensor) -> tuple[Tensor, ...]:
    if "mlp.gate_up_proj.weight" in layer:
        return (normed @ layer["mlp.gate_up_proj.weight"].T).chunk(2, -1)
    return normed @ layer["mlp.gate_proj.weight"].T, normed @ layer["mlp.up_proj.weight"].T
