"""From parallel degrees to process groups, through Megatron-Core's `parallel_state`."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates

_alone: dist.ProcessGroup | None = None
_copy: dist.ProcessGroup | None = None
_created: list[dist.ProcessGroup] = []


def initialize(parallel: ParallelConfig, seed: int) -> ProcessGroupCollection:
    """Create the process groups of a layout and seed Megatron-Core's generators.

    May be called again with another layout after `destroy`.

    Args:
        parallel: degrees whose product divides the world.
        seed: base seed of the model-parallel generators.
    """
    global _alone, _copy
    before = set(_all_groups())
    timeout = timedelta(minutes=parallel.distributed_timeout_minutes)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=parallel.distributed_timeout_minutes,  # pyright: ignore[reportArgumentType]
    )
    _alone = _my_group([[rank] for rank in range(dist.get_world_size())], timeout)
    _copy = _my_group(model_copies(parallel, dist.get_world_size()), timeout)
    _created.extend(group for group in _all_groups() if group not in before)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return ProcessGroupCollection.use_mpu_process_groups()


def single_rank_group() -> dist.ProcessGroup:
    """Return the group that holds this rank alone."""
    assert _alone is not None, "parallel topology is not initialised"
    return _alone


def model_copy() -> tuple[int, int]:
    """Return which copy of the model this rank belongs to, and how many there are: the data-parallel place."""
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def model_copy_group() -> dist.ProcessGroup:
    """Return the group of all ranks that work on the same micro-batches: tensor x context x pipeline parallel."""
    assert _copy is not None, "parallel topology is not initialised"
    return _copy


def exchange_copy_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Have `model_copy_group` return another group of the same ranks from now on; return the one before."""
    global _copy
    before, _copy = model_copy_group(), group
    return before


def model_copies(parallel: ParallelConfig, world_size: int) -> list[list[int]]:
    """Return the ranks of every copy of the model, in Megatron-Core's order of ranks: data outside pipeline stages.

    The first rank of each is on the first stage; a stage's ranks stand together, tensor parallel ones first.
    """
    stages = parallel.pipeline_model_parallel_size
    per_stage = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    stage = world_size // stages
    return [
        [stage_number * stage + first + rank for stage_number in range(stages) for rank in range(per_stage)]
        for first in range(0, stage, per_stage)
    ]


def coordinates_of(parallel: ParallelConfig, groups: ProcessGroupCollection) -> RankCoordinates:
    """Return where this rank stands."""
    return RankCoordinates(
        context_parallel_rank=groups.cp.rank(),
        context_parallel_size=groups.cp.size(),
        tensor_model_parallel_rank=groups.tp.rank(),
        tensor_model_parallel_size=groups.tp.size(),
        sequence_parallel=parallel.sequence_parallel,
        vision_parallel=parallel.vision_parallel,
    )


def destroy() -> None:
    """Close the groups of the current layout, with the threads and connections each of them holds."""
    global _alone, _copy
    parallel_state.destroy_model_parallel()
    remaining = set(_all_groups())
    for group in _created:
        if group in remaining:
            dist.destroy_process_group(group)
    _created.clear()
    _alone = _copy = None


def _my_group(all_ranks: list[list[int]], timeout: timedelta) -> dist.ProcessGroup:
    """Create groups that together hold every rank once, and return this rank's."""
    groups = [dist.new_group(ranks, timeout=timeout) for ranks in all_ranks]
    mine = next(group for group, ranks in zip(groups, all_ranks, strict=True) if dist.get_rank() in ranks)
    assert isinstance(mine, dist.ProcessGroup)
    return mine


def _all_groups() -> list[dist.ProcessGroup]:
    """Return every process group this process is a member of, in the order of creation."""
    return list(dist.distributed_c10d._world.pg_map)  # pyright: ignore[reportPrivateUsage]  (no public list)
