"""A decoder layer in few passes over memory: Megatron-Core's modules and parameters, driven by a forward pass of ours.

Megatron-Core's own copies queries out of the joint projection, rotates, splits and joins in passes of their own, and
adds before it normalises. Here one pass takes the joint projection apart and rotates it, one adds and normalises, and
the MLP is `mlp.run_mlp`. A layer recomputed by itself ends before its MLP: of that, backward needs the input alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.random import is_checkpointing
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.kernels.rotary import split_and_rotate, split_norm_and_rotate
from megatron_v2pe.models.adapters import draw_by
from megatron_v2pe.models.fusion import fire_forward_hooks, in_turn
from megatron_v2pe.models.mlp import run_mlp
from megatron_v2pe.models.norms import RMSNorm
from megatron_v2pe.models.transformer_config import LayerConfig
from megatron_v2pe.parallel.attention.core import FlashCoreAttention, angles
from megatron_v2pe.parallel.packed_sequence import PackedSequence


class DecoderLayer(TransformerLayer):
    """RMSNorm, attention, addition and RMSNorm, MLP, addition; no biases behind attention and MLP, no dropout."""

    def __init__(self, config: LayerConfig, *args: Any, **kwargs: Any) -> None:
        """Build Megatron-Core's layer.

        Raises:
            ConfigError: a family asks for what this layer does not compute; names the setting.
        """
        super().__init__(config, *args, **kwargs)
        for name in ("hidden_dropout", "add_bias_linear"):
            if value := getattr(config, name):
                raise ConfigError(f"{name}: found {value}, which a decoder layer of spec local does not compute")
        self.mlp_chunk_tokens = config.mlp_chunk_tokens
        single = config.recompute_method == "block" or config.recompute_num_layers == 1
        self.recomputed_alone = config.recompute_granularity == "full" and single
        """Whether the layer, if recomputed, is recomputed without others, and its second result is not read."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: PackedSequence | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Run the layer.

        Args:
            hidden_states: [S, 1, hidden], this context-parallel rank's tokens, or its slice of them under sequence
                parallelism.
            attention_mask: must be None: documents come from the pack.
            packed_seq_params: the pack's layout and rotary angles.
            unused: what Megatron-Core hands to every layer and this one has no use for.

        Returns:
            [S, 1, hidden], and None in place of a context.
        """
        assert attention_mask is None and packed_seq_params is not None
        draw_by(self, packed_seq_params.draws)
        update = attend(self.self_attention, self.input_layernorm(hidden_states), packed_seq_params)
        hidden, normed = self.pre_mlp_layernorm(hidden_states, update)
        again = self.recomputed_alone and torch.is_grad_enabled() and is_checkpointing()
        update, _ = run_mlp(self.mlp, normed, self.mlp_chunk_tokens, needed=not again)
        return hidden + update, None


def attend(attention: Any, states: Tensor, pack: PackedSequence) -> Tensor:
    """Run self-attention over a pack.

    Args:
        attention: Megatron-Core's `SelfAttention` with our `FlashCoreAttention`; norms of queries and keys are ours.
        states: [S, 1, hidden], normed; this rank's slice under sequence parallelism.
        pack: its layout and rotary angles.

    Returns:
        [S, 1, hidden].
    """
    core: FlashCoreAttention = attention.core_attention
    joint, _ = attention.linear_qkv(states)
    joint = joint.view(joint.shape[0], attention.num_query_groups_per_partition, -1, core.config.kv_channels)
    query, key, value = _queries_keys_values(attention, joint, pack)
    if attention.checkpoint_core_attention and attention.training:
        seen = tensor_parallel.checkpoint(partial(core.attend, pack=pack), False, query, key, value)
    else:
        seen = core.attend(query, key, value, pack)
    return attention.linear_proj(seen.flatten(1).unsqueeze(1))[0]


def _queries_keys_values(attention: Any, joint: Tensor, pack: PackedSequence) -> tuple[Tensor, Tensor, Tensor]:
    """Take the joint projection apart: the first two normed where the model has norms for them, and rotated."""
    norms = attention.q_layernorm, attention.k_layernorm
    if not isinstance(norms[0], RMSNorm):  # `layer_specs.layer_spec` lets through both or none
        return split_and_rotate(joint, *angles(pack, joint.shape[0]))
    for norm in norms:
        fire_forward_hooks(norm)  # they are not called, and what waits for gathered weights is a hook of theirs
    query, key = (cast(Tensor, in_turn(norm.weight)) for norm in norms)
    return split_norm_and_rotate(joint, query, key, norms[0].eps, *angles(pack, joint.shape[0]))
