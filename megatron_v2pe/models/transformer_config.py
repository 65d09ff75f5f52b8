"""How a model is built and run, and what decoder and tower have in common of Megatron-Core's `TransformerConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_v2pe.models.recompute import RecomputePlan


@dataclass(frozen=True)
class ModelOptions:
    """How a model is built and run; none of it changes what it computes in exact arithmetic."""

    params_dtype: torch.dtype = torch.float32
    """Type of parameters and activations."""
    spec: str = "local"
    """`local` or `te`, see `layer_specs.choose_spec`."""
    recompute_granularity: str | None = None
    """Decoder activation recompute: None, `selective` (attention) or `full` (whole layers)."""
    recompute_method: str | None = None
    """With `full`: `uniform` or `block`."""
    recompute_num_layers: int | None = None
    """With `full`: layers per recomputed unit, or number of layers recomputed."""
    keep_attention: bool = False
    """With recompute: keep attention's result, so that backward does not run attention (and its ring) again."""
    recompute_vision: bool = False
    """Recompute every layer of the vision tower."""
    recompute_plan: RecomputePlan | None = None
    """What of this stage is recomputed, layer by layer; where given, it counts and the five settings above do not."""
    drop_path_rate: float | None = None
    """Stochastic depth of the vision tower; None keeps the checkpoint's."""
    head_chunk_size: int = 4096
    """Supervised tokens projected to the vocabulary at a time."""
    mlp_chunk_tokens: int | None = 16384
    """Tokens (of the tower: tokens of all tiles) an MLP works on at a time; None: all."""
    perform_initialization: bool = True
    """Draw initial weights; off where a checkpoint is loaded right after."""

    def keeps_attention(self, layers: int) -> list[bool]:
        """Tell of each of a stage's `layers` decoder layers whether its recompute finds attention's result kept."""
        plan = self.recompute_plan
        return [self.keep_attention] * layers if plan is None else plan.keeps_attention(layers)

    def tower_layers_recomputed(self, layers: int) -> int:
        """Return how many of the tower's `layers` layers are recomputed, the first ones."""
        plan = self.recompute_plan
        return layers * self.recompute_vision if plan is None else min(plan.tower_layers, layers)

    @property
    def tower_tiles(self) -> int:
        """Tiles encoded at a time and again in the backward pass; 0: all at once."""
        return 0 if self.recompute_plan is None else self.recompute_plan.tower_tiles

    def decoder_recompute(self) -> dict[str, Any]:
        """Return Megatron-Core's three settings of decoder recompute."""
        plan, names = self.recompute_plan, ("granularity", "method", "num_layers")
        stated = (self.recompute_granularity, self.recompute_method, self.recompute_num_layers)
        if plan is not None:
            stated = ("full", "block", plan.decoder_layers) if plan.decoder_layers else (None, None, None)
        return {f"recompute_{name}": value for name, value in zip(names, stated, strict=True)}


@dataclass
class LayerConfig(TransformerConfig):
    """Megatron-Core's configuration, and what our own parts of a layer read from it."""

    attention_kernels: str = "auto"
    """Value of `parallel.attention_backend`; Megatron-Core has a field of that name for kernels of its own."""
    mlp_chunk_tokens: int | None = None
    """Rows the MLP works on at a time, see `mlp.run_mlp`; None: all."""
    head_norms: bool = False
    """Every head of queries and keys has an RMSNorm, see `norms.HeadNorm`. Megatron-Core's `qk_layernorm` stays false:
    by it gradients of all parameters with certain names are summed over tensor-parallel ranks, a tower's shards too."""


def common_settings(tensor_model_parallel_size: int, options: ModelOptions) -> dict[str, Any]:
    """Return the settings of Megatron-Core that decoder and tower share: no dropout, none of its fusions."""
    return {
        "mlp_chunk_tokens": options.mlp_chunk_tokens,
        "tensor_model_parallel_size": tensor_model_parallel_size,
        "params_dtype": options.params_dtype,
        "pipeline_dtype": options.params_dtype,
        "bf16": options.params_dtype == torch.bfloat16,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_cpu_initialization": True,
        "perform_initialization": options.perform_initialization,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "calculate_per_token_loss": True,
        # Demanded by Megatron-Core for variable sequence lengths, even in a dense model.
        "moe_token_dispatcher_type": "alltoall",
    }
