"""From patch features to language-model tokens: pixel shuffle, then the two-layer projector `mlp1`."""

from __future__ import annotations

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_v2pe.kernels.gelu import gelu
from megatron_v2pe.models.config_sections import padded
from megatron_v2pe.models.linear import ColumnLinear, RowLinear
from megatron_v2pe.models.norms import LayerNorm
from megatron_v2pe.models.padding import mark

PROJECTOR_NORM_EPS = 1e-5


def pixel_shuffle(features: Tensor, ratio: float, version: str) -> Tensor:
    """Fold neighbouring patches into channels.

    With block side b = 1 / ratio, output token (i, j) holds the patches (b i + r, b j + c), c fastest, each with all
    its channels. Tokens are row-major in `v2`; `v1` has i and j swapped.

    Args:
        features: [tiles, side * side, h], patches row-major, no class token.
        ratio: 1 / b, 0.5 for every published InternVL.
        version: `v1` or `v2`.

    Returns:
        [tiles, (side / b)^2, h * b * b].
    """
    block = round(1 / ratio)
    side = round(features.shape[1] ** 0.5)
    grid = features.unflatten(1, (side // block, block, side // block, block))  # [tiles, i, r, j, c, h]
    grid = grid.permute(0, 1, 3, 2, 4, 5) if version == "v2" else grid.permute(0, 3, 1, 2, 4, 5)
    return grid.flatten(3).flatten(1, 2)


class Projector(MegatronModule):
    """`LayerNorm -> Linear -> GELU -> Linear`, columns then rows split over tensor-parallel ranks."""

    def __init__(
        self, config: TransformerConfig, input_size: int, output_size: int, pg_collection: ProcessGroupCollection
    ) -> None:
        """Build the projector from `input_size` shuffled channels to the decoder's `output_size`."""
        super().__init__(config)
        groups = {"config": config, "init_method": config.init_method, "tp_group": pg_collection.tp}
        self.norm = LayerNorm(config, input_size, PROJECTOR_NORM_EPS)
        inner = padded(output_size, pg_collection.tp.size())
        self.linear_fc1 = ColumnLinear(input_size, inner, bias=True, gather_output=False, is_expert=False, **groups)
        self.linear_fc2 = RowLinear(
            inner, output_size, bias=True, input_is_parallel=True, skip_bias_add=False, is_expert=False, **groups
        )
        for parameter, axis in ((self.linear_fc1.weight, 0), (self.linear_fc1.bias, 0), (self.linear_fc2.weight, 1)):
            mark(parameter, axis, output_size, pg_collection.tp)

    def forward(self, features: Tensor) -> Tensor:
        """Project [tiles, tokens, input_size] to [tiles, tokens, output_size]."""
        hidden, _ = self.linear_fc1(self.norm(features))
        return self.linear_fc2(gelu(hidden))[0]
