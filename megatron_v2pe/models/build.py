"""Build this rank's part of InternVL from a configuration, a layout and a position policy."""

from __future__ import annotations

from collections.abc import Callable

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.utils import get_pg_size
from torch import nn

from megatron_v2pe.models import padding
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.parallel.config import ModelSizes, ParallelConfig
from megatron_v2pe.v2pe.rope_scaling import NoScaling
from megatron_v2pe.v2pe.rotary import RotaryEmbedding
from megatron_v2pe.v2pe.settings import StridePolicy


def build_rotary(model: InternVLConfig, policy: StridePolicy) -> RotaryEmbedding:
    """Return the rotary module that belongs to a position policy.

    Positions of the version `default` use the scaling that the checkpoint names. V2PE's use it too where the model was
    trained with it from some point on (`linear`, `llama3`, `yarn`, `longrope`), and plain angles at every length in
    place of `dynamic`, as the published V2PE code has it.
    """
    rope = model.llm.rope
    scaling = rope.scaling if policy.version == "default" or rope.scaling.with_v2pe else NoScaling()
    return RotaryEmbedding(model.llm.head_dim, rope.base, policy.denominator(model.tokens_per_tile), scaling)


def build_model(
    model: InternVLConfig,
    parallel: ParallelConfig,
    options: ModelOptions,
    policy: StridePolicy,
    image_token_id: int,
    pg_collection: ProcessGroupCollection,
    adapt: Callable[[nn.Module], object] | None = None,
) -> InternVLModel:
    """Build this rank's pipeline stage.

    Args:
        model: see `InternVLModel` for this and the next ones.
        parallel: see there.
        options: see there.
        policy: which position policy the rotary angles belong to.
        image_token_id: see there.
        pg_collection: see there.
        adapt: puts adapters on the linears of the built stage (`adapters.apply_adapters`); none by default, and no
            setting of a run asks for any yet.

    Raises:
        ConfigError: the layout does not fit the model; the disagreeing numbers are printed.
    """
    if options.drop_path_rate is not None:
        model = model.with_vision(drop_path_rate=options.drop_path_rate)
    stage = InternVLModel(model, parallel, options, build_rotary(model, policy), image_token_id, pg_collection)
    mark_sharded_parameters(stage)
    padding.clear(stage)
    if adapt is not None:  # afterwards: an adapter says itself which of its parameters are parts
        adapt(stage)
    return stage


def mark_sharded_parameters(model: nn.Module) -> None:
    """Say of every parameter whether tensor-parallel ranks hold different parts of it.

    The norm of the gradients counts parts on every rank and whole parameters once. Megatron-Core marks parts only where
    it also draws their initial weights; unmarked, those of other ranks would be missing from the norm, and clipping
    would depend on the layout.
    """
    for module in model.modules():
        if isinstance(module, ColumnParallelLinear):
            parts = (module.weight, module.bias)
        elif isinstance(module, RowParallelLinear | VocabParallelEmbedding):
            parts = (module.weight,)
        else:
            continue
        # A replicated tower's are whole, though Megatron-Core marks their biases as parts.
        sharded = get_pg_size(module.tp_group) > 1  # pyright: ignore[reportArgumentType]
        for parameter in parts:
            if parameter is not None:
                setattr(parameter, "tensor_model_parallel", sharded)  # noqa: B010 (a tensor attribute)
    for parameter in model.parameters():
        if not hasattr(parameter, "tensor_model_parallel"):
            setattr(parameter, "tensor_model_parallel", False)  # noqa: B010


def model_sizes(model: InternVLConfig) -> ModelSizes:
    """Return the sizes a parallel layout has to divide."""
    return ModelSizes(
        num_layers=model.llm.num_layers,
        num_attention_heads=model.llm.num_attention_heads,
        num_query_groups=model.llm.num_query_groups,
        ffn_hidden_size=model.llm.ffn_hidden_size,
    )
