"""InternViT on Megatron-Core layers: patch embedding, position embedding, pre-norm layers with layer scale.

There is no final norm: the last hidden state is the raw residual stream. Tensor parallelism shards attention heads and
feed-forward columns, with heads and columns of zeros behind the checkpoint's where it does not divide them
(`models/padding.py`); every tensor-parallel rank sees the same tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from megatron_v2pe.families.internvit.config import ARCHITECTURE
from megatron_v2pe.kernels.residual import scaled_residual
from megatron_v2pe.models.adapters import draw_by, need_draws
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import VisionConfig, padded
from megatron_v2pe.models.drop_path import DropPathKey, keep_factors, layer_rates
from megatron_v2pe.models.fusion import in_turn
from megatron_v2pe.models.layer_specs import block_spec, layer_spec
from megatron_v2pe.models.mlp import run_mlp
from megatron_v2pe.models.padding import mark
from megatron_v2pe.models.transformer_config import LayerConfig, ModelOptions, common_settings
from megatron_v2pe.models.vision_tower import TOWERS, VisionTower
from megatron_v2pe.models.whole_width_norm import WholeWidthNorm
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.parallel.token_draws import TokenDraws

_NORMS = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}
"""Megatron-Core's names of the norms that `norm_type` of a `vision_config` may name."""
BiasDropoutAdd = Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]


class InternViTLayer(TransformerLayer):
    """`x + DropPath(ls1 * Attn(norm1 x))`, then `x + DropPath(ls2 * MLP(norm2 x))`."""

    def __init__(self, config: LayerConfig, *args: Any, **kwargs: Any) -> None:
        """Build Megatron-Core's layer and replace its residual additions by scaled ones."""
        super().__init__(config, *args, **kwargs)
        self.mlp_chunk_tokens = config.mlp_chunk_tokens
        self.ls1 = nn.Parameter(torch.ones(config.hidden_size, dtype=config.params_dtype))
        self.ls2 = nn.Parameter(torch.ones(config.hidden_size, dtype=config.params_dtype))
        self.keep: Tensor | None = None
        """[2, tiles], set before each forward; None keeps every path."""
        self.self_attn_bda = self._attention_residual
        self.mlp_bda = self._mlp_residual
        self.bias_dropout_add_exec_handler = nullcontext  # Megatron-Core's adds with gradients where they are off

    def _attention_residual(self, training: bool, fused: bool) -> BiasDropoutAdd:
        return lambda update, residual, _: self._add(update, residual, self.ls1, 0)

    def _mlp_residual(self, training: bool, fused: bool) -> BiasDropoutAdd:
        return lambda update, residual, _: self._add(update, residual, self.ls2, 1)

    def _add(self, update: tuple[Tensor, Tensor | None], residual: Tensor, scale: nn.Parameter, path: int) -> Tensor:
        hidden, bias = update
        keep = None if self.keep is None else self.keep[path]
        return scaled_residual(residual, hidden, in_turn(bias), in_turn(scale), keep)

    def _forward_mlp(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        if isinstance(self.pre_mlp_layernorm, IdentityOp):  # Transformer Engine's first linear holds the norm
            return super()._forward_mlp(hidden_states)
        update = run_mlp(self.mlp, self.pre_mlp_layernorm(hidden_states), self.mlp_chunk_tokens)
        return self._add(update, hidden_states, self.ls2, 1)


class InternViTBlock(TransformerBlock):
    """The stack of layers, run up to the selected one, each recomputed in the backward pass where asked."""

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        num_layers: int,
        keep: list[Tensor | None],
        recompute: int,
        draws: TokenDraws | None = None,
    ) -> Tensor:
        """Run the first `num_layers` layers.

        Args:
            hidden: [tokens, tiles, hidden].
            num_layers: layers to run.
            keep: per layer, drop-path factors [2, tiles] or None.
            recompute: of how many layers, the first ones, only the input is kept for the backward pass.
            draws: names what adapters draw for the tokens, token after token of all tiles; None: they draw nothing.

        Returns:
            [tokens, tiles, hidden].
        """
        for number, (layer, factors) in enumerate(zip(self.layers[:num_layers], keep[:num_layers], strict=True)):
            learns = hidden.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())
            if number < recompute and learns and self.training and torch.is_grad_enabled():
                if not hidden.requires_grad:  # reentrant recompute gives no gradients without an input that needs one
                    hidden = hidden.detach().requires_grad_()
                hidden = tensor_parallel.checkpoint(_runner(layer, factors, draws), False, hidden)
            else:
                hidden = _runner(layer, factors, draws)(hidden)
        return hidden


def _runner(layer: nn.Module, factors: Tensor | None, draws: TokenDraws | None) -> Callable[[Tensor], Tensor]:
    def run(hidden: Tensor) -> Tensor:
        draw_by(layer, draws)
        layer.keep = factors  # type: ignore[assignment]  # again at recompute, when another micro-batch has passed
        return layer(hidden, attention_mask=None)[0]

    return run


class InternViT(VisionTower):
    """Tiles to patch features."""

    def __init__(
        self,
        config: TransformerConfig,
        vision: VisionConfig,
        select_layer: int,
        spec: str,
        recompute: int,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        """Build the tower.

        Args:
            config: Megatron-Core's configuration of its layers.
            vision: the checkpoint's tower.
            select_layer: which of the `num_layers + 1` hidden states to return, embeddings first.
            spec: `local` or `te`.
            recompute: layers, the first ones, that are recomputed in the backward pass.
            pg_collection: process groups.
        """
        super().__init__(config)
        self.vision = vision
        self.num_layers_run = select_layer % (vision.num_layers + 1)
        self.recompute = recompute
        self.rates = layer_rates(vision.drop_path_rate, vision.num_layers)
        width, patch, dtype = vision.hidden_size, vision.patch_size, config.params_dtype
        grid = vision.image_size // patch
        self.patch_embedding = nn.Conv2d(vision.num_channels, width, patch, stride=patch, dtype=dtype)
        self.class_token = nn.Parameter(torch.randn(1, 1, width, dtype=dtype))
        self.position_embedding = nn.Parameter(torch.randn(1, 1 + grid**2, width, dtype=dtype))
        norm = _query_key_norm(vision, pg_collection)
        norms: dict[str, Any] = {"query_norm": norm, "key_norm": norm}
        layer = layer_spec(spec, AttnMaskType.no_mask, InternViTLayer, **norms, qkv_bias=vision.qkv_bias)
        layers = [layer] * vision.num_layers
        self.decoder = InternViTBlock(config, block_spec(layers, final_norm=False), pg_collection=pg_collection)
        for layer in self.decoder.layers:
            _mark_padding(layer, vision, pg_collection)
        if config.perform_initialization:
            self._initialize(config.init_method_std)

    def _initialize(self, std: float) -> None:
        for parameter in (self.patch_embedding.weight, self.class_token, self.position_embedding):
            nn.init.normal_(parameter, std=std)
        nn.init.zeros_(self.patch_embedding.bias)  # type: ignore[arg-type]
        for layer in self.decoder.layers:
            nn.init.constant_(layer.ls1, self.vision.initializer_factor)
            nn.init.constant_(layer.ls2, self.vision.initializer_factor)

    def forward(self, pixel_values: Tensor, drop_path: DropPathKey | None = None) -> Tensor:
        """Encode tiles.

        Args:
            pixel_values: [tiles, 3, size, size], normalised.
            drop_path: names the stochastic-depth draws; None, or evaluation mode, keeps every path.

        Returns:
            [tiles, 1 + patches, hidden], class token first.
        """
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        rows, columns = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        hidden = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        hidden = hidden + resize_position_embedding(self.position_embedding, rows, columns)
        keep = self._keep(drop_path, hidden)
        draws = None
        if drop_path is not None and self.training and need_draws(self.decoder):
            of_tiles = drop_path.token_draws(hidden.shape[0], hidden.shape[1], hidden.device)
            draws = replace(of_tiles, tokens=of_tiles.tokens.view(hidden.shape[:2]).t().flatten())
        hidden = hidden.transpose(0, 1).contiguous()
        hidden = self.decoder(hidden, self.num_layers_run, keep, self.recompute, draws)
        return hidden.transpose(0, 1)

    def _keep(self, key: DropPathKey | None, hidden: Tensor) -> list[Tensor | None]:
        if key is None or not self.training:
            return [None] * len(self.rates)
        tiles = hidden.shape[0]
        return [keep_factors(key, i, r, tiles, hidden) if r > 0 else None for i, r in enumerate(self.rates)]

    def parameters_in_order_of_use(self) -> list[nn.Parameter]:
        """Return all parameters in the order a forward pass meets them, which is not the order of registration."""
        first = [*self.patch_embedding.parameters(), self.class_token, self.position_embedding]
        return first + [p for layer in self.decoder.layers for p in _in_order_of_use(layer)]

    def unused_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of layers beyond the selected one: they take part in no forward pass."""
        return [p for layer in self.decoder.layers[self.num_layers_run :] for p in _in_order_of_use(layer)]


@TOWERS.register(ARCHITECTURE)
def build_tower(
    model: InternVLConfig, parallel: ParallelConfig, options: ModelOptions, pg_collection: ProcessGroupCollection
) -> InternViT:
    """Build the tower of a checkpoint; see `InternViT` for what it is made of."""
    config = tower_config(model, parallel, options)
    recomputed = options.tower_layers_recomputed(model.vision.num_layers)
    return InternViT(config, model.vision, model.select_layer, options.spec, recomputed, pg_collection)


def tower_config(model: InternVLConfig, parallel: ParallelConfig, options: ModelOptions) -> LayerConfig:
    """Return the tower's configuration: whole on the first stage, sequences not split, tensor parallel or alone."""
    vision = model.vision
    tensor_parallel_size = 1 if parallel.vision_parallel == "replicated" else parallel.tensor_model_parallel_size
    return LayerConfig(
        num_layers=vision.num_layers,
        hidden_size=vision.hidden_size,
        num_attention_heads=padded(vision.num_attention_heads, tensor_parallel_size),
        kv_channels=vision.head_dim,
        ffn_hidden_size=padded(vision.ffn_hidden_size, tensor_parallel_size),
        normalization=_NORMS[vision.norm_type],
        layernorm_epsilon=vision.norm_eps,
        activation_func=F.gelu,
        add_bias_linear=True,
        add_qkv_bias=vision.qkv_bias,
        attention_kernels=parallel.attention_backend,
        init_method_std=vision.initializer_range,
        **common_settings(tensor_parallel_size, options),
    )


def _mark_padding(layer: nn.Module, vision: VisionConfig, groups: ProcessGroupCollection) -> None:
    """Say where the layer holds heads and columns of the MLP that the checkpoint does not have; see `padding.py`."""
    attention, mlp, width, wide = layer.self_attention, layer.mlp, vision.hidden_size, vision.ffn_hidden_size
    qkv, projection, fc1, fc2 = attention.linear_qkv, attention.linear_proj, mlp.linear_fc1, mlp.linear_fc2  # type: ignore[union-attr]
    parts: list[tuple[Any, str, int, int]] = [
        *((qkv, kind, 0, 3 * width) for kind in ("weight", "bias")),
        (projection, "weight", 1, width),
        *((fc1, kind, 0, wide) for kind in ("weight", "bias")),
        (fc2, "weight", 1, wide),
    ]
    if vision.qk_normalization:
        parts += [(norm, "weight", 0, width) for norm in (attention.q_layernorm, attention.k_layernorm)]  # type: ignore[union-attr]
    for module, kind, axis, size in parts:
        mark(getattr(module, kind), axis, size, groups.tp)


def _query_key_norm(vision: VisionConfig, groups: ProcessGroupCollection) -> Any:
    """Return the spec of the norms of queries and keys."""
    if not vision.qk_normalization:
        return IdentityOp
    return ModuleSpec(WholeWidthNorm, params={"width": vision.hidden_size, "tp_group": groups.tp})


def _in_order_of_use(layer: nn.Module) -> list[nn.Parameter]:
    attention, mlp = layer.self_attention, layer.mlp
    norms: list[Any] = [attention.q_layernorm, attention.k_layernorm]  # type: ignore[union-attr]
    before: list[Any] = [layer.input_layernorm, attention.linear_qkv, *norms, attention.linear_proj]  # type: ignore[union-attr]
    after: list[Any] = [layer.pre_mlp_layernorm, mlp.linear_fc1, mlp.linear_fc2]  # type: ignore[union-attr]
    ordered = [*(p for m in before for p in m.parameters()), layer.ls1, *(p for m in after for p in m.parameters())]
    ordered.append(layer.ls2)
    assert len(ordered) == sum(1 for _ in layer.parameters())
    return ordered  # type: ignore[return-value]


def resize_position_embedding(embedding: Tensor, rows: int, columns: int) -> Tensor:
    """Resize the patch entries of [1, 1 + g * g, hidden] to a grid of rows x columns, bicubic in float32.

    The class entry is kept. For equal grids the embedding is returned as it is, of which bicubic resizing is an exact
    identity.
    """
    grid = int((embedding.shape[1] - 1) ** 0.5)
    if (rows, columns) == (grid, grid):
        return embedding
    patches = embedding[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(rows, columns), mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2).to(embedding.dtype)
    return torch.cat([embedding[:, :1], patches], dim=1)
