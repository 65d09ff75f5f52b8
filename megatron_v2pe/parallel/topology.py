"""From parallel degrees to process groups, through Megatron-Core's `parallel_state`."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.parallel.config import ParallelConfig

_alone: dist.ProcessGroup | None = None
_created: list[dist.ProcessGroup] = []


def initialize(parallel: ParallelConfig, seed: int) -> ProcessGroupCollection:
    """Create the process groups of a layout and seed Megatron-Core's generators.

    May be called again with another layout after `destroy`.

    Args:
        parallel: degrees whose product divides the world.
        seed: base seed of the model-parallel generators.
    """
    global _alone
    before = set(_all_groups())
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        create_gloo_process_groups=False,
    )
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    alone = groups[dist.get_rank()]
    assert isinstance(alone, dist.ProcessGroup)
    _alone = alone
    _created.extend(group for group in _all_groups() if group not in before)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return ProcessGroupCollection.use_mpu_process_groups()


def single_rank_group() -> dist.ProcessGroup:
    """Return the group that holds this rank alone."""
    assert _alone is not None, "parallel topology is not initialised"
    return _alone


def destroy() -> None:
    """Close the groups of the current layout, with the threads and connections each of them holds."""
    global _alone
    parallel_state.destroy_model_parallel()
    remaining = set(_all_groups())
    for group in _created:
        if group in remaining:
            dist.destroy_process_group(group)
    _created.clear()
    _alone = None


def _all_groups() -> list[dist.ProcessGroup]:
    """Every process group this process is a member of, in the order of creation."""
    return list(dist.distributed_c10d._world.pg_map)  # pyright: ignore[reportPrivateUsage]  (no public list)
