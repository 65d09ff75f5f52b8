"""Layouts: what fits, and errors that print the two numbers which do not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.parallel.config import ModelSizes, ParallelConfig

INTERNVL2_2B = ModelSizes(
    num_layers=24,
    num_attention_heads=16,
    num_query_groups=8,
    ffn_hidden_size=8192,
)


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_internvl2_2b_fits_every_power_of_two_up_to_its_query_groups(degree):
    layout = ParallelConfig(tensor_model_parallel_size=degree, sequence_parallel=degree > 1)
    layout.validate(world_size=2 * degree, sizes=INTERNVL2_2B)
    assert layout.data_parallel_size(2 * degree) == 2


def test_data_parallel_is_what_the_other_degrees_leave():
    layout = ParallelConfig(2, 3, 4)
    assert layout.model_parallel_size == 24
    assert layout.data_parallel_size(72) == 3


@pytest.mark.parametrize(
    ("layout", "world_size", "numbers"),
    [
        (ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2), 6, ("6", "= 4")),
        (ParallelConfig(context_parallel_size=8), 4, ("world size 4", "context_parallel_size 8")),
        (ParallelConfig(), 0, ("world size 0",)),
        (ParallelConfig(tensor_model_parallel_size=16), 16, ("size 16", "the 8 query groups")),
        (ParallelConfig(tensor_model_parallel_size=3), 3, ("size 3", "the 16 attention heads")),
        (ParallelConfig(pipeline_model_parallel_size=5), 5, ("24 decoder layers", "size 5")),
        (ParallelConfig(pipeline_model_parallel_size=48), 48, ("24 decoder layers", "size 48")),
        (ParallelConfig(tensor_model_parallel_size=0), 1, ("tensor_model_parallel_size is 0",)),
        (ParallelConfig(sequence_parallel=True), 1, ("sequence_parallel", "it is 1")),
        (ParallelConfig(num_layers_in_first_pipeline_stage=4), 1, ("is 4", "size is 1")),
        (
            ParallelConfig(use_distributed_optimizer=False, overlap_param_gather=True),
            1,
            ("overlap_param_gather",),
        ),
        (ParallelConfig(overlap_param_gather=True), 1, ("overlap_grad_reduce",)),
        (ParallelConfig(cp_comm_type="ring"), 1, ("cp_comm_type is 'ring'", "p2p, a2a")),
        (ParallelConfig(vision_parallel="data"), 1, ("vision_parallel is 'data'", "tensor, replicated")),
        (
            ParallelConfig(distributed_timeout_minutes=0),
            1,
            ("distributed_timeout_minutes is 0", "between 0.001 and 525600"),
        ),
        (ParallelConfig(distributed_timeout_minutes=float("nan")), 1, ("distributed_timeout_minutes is nan",)),
        (ParallelConfig(context_parallel_size=3, cp_comm_type="a2a"), 3, ("size 3", "the 16 attention heads")),
        (ParallelConfig(context_parallel_size=16, cp_comm_type="a2a"), 16, ("size 16", "the 8 query groups")),
        (
            ParallelConfig(4, context_parallel_size=4, cp_comm_type="a2a"),
            16,
            ("context_parallel_size 4", "the 2 query groups", "8 over 4", "use p2p"),
        ),
    ],
)
def test_what_does_not_fit_is_told_with_both_numbers(layout, world_size, numbers):
    with pytest.raises(ConfigError) as raised:
        layout.validate(world_size, INTERNVL2_2B)
    for number in numbers:
        assert number in str(raised.value)


def test_tensor_parallel_must_divide_the_mlp_of_the_language_model():
    sizes = replace(INTERNVL2_2B, ffn_hidden_size=8191)
    with pytest.raises(ConfigError, match="2 does not divide the 8191 columns of the language model"):
        ParallelConfig(tensor_model_parallel_size=2).validate(2, sizes)


@pytest.mark.parametrize(
    ("degree", "groups", "others", "remedy"),
    [
        (4, 2, {"num_attention_heads": 16}, "take 2 with context_parallel_size 2,"),  # the sizes of Qwen2.5-3B
        (8, 2, {"num_attention_heads": 16}, "take 2 with context_parallel_size 4,"),
        (4, 2, {"num_attention_heads": 14}, "take 2 with context_parallel_size 2,"),  # of Qwen2.5-0.5B
        (7, 2, {"num_attention_heads": 14}, "that this model can have is 2: take 2,"),
        (3, 2, {"num_attention_heads": 14}, "that this model can have is 2: take 2,"),
    ],
)
def test_fewer_groups_than_ranks_are_answered_with_the_layout_that_works(degree, groups, others, remedy):
    sizes = ModelSizes(**{**INTERNVL2_2B.__dict__, "num_query_groups": groups, "ffn_hidden_size": 4864, **others})
    with pytest.raises(ConfigError, match=f"{degree} does not divide .*{remedy}"):
        ParallelConfig(tensor_model_parallel_size=degree).validate(degree, sizes)
    context = int(remedy.rpartition(" ")[2].strip(",")) if "context" in remedy else 1
    ParallelConfig(2, context_parallel_size=context).validate(2 * context, sizes)


def test_a_ring_asks_nothing_of_the_heads_and_all_to_all_only_that_they_can_be_dealt_out():
    ParallelConfig(context_parallel_size=16).validate(16, INTERNVL2_2B)
    ParallelConfig(context_parallel_size=3).validate(3, INTERNVL2_2B)
    ParallelConfig(2, context_parallel_size=4, cp_comm_type="a2a").validate(8, INTERNVL2_2B)


@pytest.mark.parametrize(
    ("stages", "first", "last", "layers", "expected"),
    [
        (1, None, None, 24, [24]),
        (4, None, None, 24, [6, 6, 6, 6]),
        (2, 8, None, 24, [8, 16]),
        (2, None, 5, 24, [19, 5]),
        (2, 9, 15, 24, [9, 15]),
        (4, 3, 5, 24, [3, 8, 8, 5]),
    ],
)
def test_layers_per_stage(stages, first, last, layers, expected):
    assert ParallelConfig(1, stages, 1, False, first, last).layers_per_stage(layers) == expected


@pytest.mark.parametrize(
    ("stages", "first", "last", "left"),
    [
        (2, 8, 8, "8 layers are left for 0 equal stages"),
        (2, 24, None, "0 layers are left for 1 equal stages"),
        (2, 25, None, "-1 layers are left for 1 equal stages"),
        (4, 3, 4, "17 layers are left for 2 equal stages"),
        (4, 1, None, "23 layers are left for 3 equal stages"),
        (2, 0, None, "0 in the first"),
    ],
)
def test_layers_that_cannot_be_dealt_out(stages, first, last, left):
    layout = ParallelConfig(1, stages, 1, False, first, last)
    with pytest.raises(ConfigError, match=f"24 decoder layers do not fit .*size {stages}.*{left}"):
        layout.layers_per_stage(24)


def test_what_is_said_of_layers_that_cannot_be_dealt_out_can_be_done():
    for layers in range(1, 40):
        for stages in range(2, layers + 1):
            if layers % stages:
                with pytest.raises(ConfigError, match="num_layers_in_first_pipeline_stage") as caught:
                    ParallelConfig(1, stages).layers_per_stage(layers)
                first = int(re.findall(r"stage to (\d+)", str(caught.value))[0])
                assert sum(ParallelConfig(1, stages, 1, False, first).layers_per_stage(layers)) == layers
    with pytest.raises(ConfigError, match="sizes that divide them are 1, 2$"):
        ParallelConfig(1, 4).layers_per_stage(2)
