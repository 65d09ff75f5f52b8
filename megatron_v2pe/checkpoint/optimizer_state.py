"""Saving and loading an optimizer's state in a distributed checkpoint, around three faults of Megatron-Core 0.16.

Without apex or Transformer Engine the inner optimizer is PyTorch's AdamW, which keeps a step count per parameter, and
the distributed optimizer then (1) asserts that state exists before it is described for loading, (2) looks for a "step"
among loaded tensors, where none is stored, and (3) hands all parameters one and the same step tensor, so that every
step counts once per parameter and the bias correction drifts. Each is mended here, and tested.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import nn

METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}
"""Has every parameter's moments stored in the shape of the parameter, so that any layout can load them."""
_HOST_SETTINGS = (
    "offload_fraction",
    "cpu_optimizer_cls",
    "gpu_optimizer_cls",
    "param_update_in_fp32",
    "pin_cpu_grads",
    "pin_cpu_params",
    "overlap_cpu_optimizer_d2h_h2d",
)
"""What Megatron-Core's `HybridDeviceOptimizer` keeps with every group."""
_HOW = ("fused", "foreach", "capturable", "differentiable")
"""Settings of how PyTorch's AdamW computes a step: those of the running optimizer stay, not those saved."""


def state_to_save(
    optimizer: MegatronOptimizer, model_state: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    """Describe the optimizer's state for saving; there is none on a pipeline stage where nothing learns."""
    if _nothing_learns(optimizer):
        return {}
    state = optimizer.sharded_state_dict(model_state, is_loading=False, metadata={**metadata, **METADATA})
    return _without_host_settings(state)


def _without_host_settings(state: Any) -> Any:
    """Leave out what an optimizer on the host adds to its groups, classes among them: any run goes on from the rest."""
    if isinstance(state, dict):
        groups = "cpu_optimizer_cls" in state
        return {k: _without_host_settings(v) for k, v in state.items() if not (groups and k in _HOST_SETTINGS)}
    return [_without_host_settings(entry) for entry in state] if isinstance(state, list) else state


def state_to_load(
    optimizer: MegatronOptimizer, model_state: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    """Describe the optimizer's state as the target of a load; state that does not exist yet is created first."""
    if _nothing_learns(optimizer):
        return {}
    for inner in _distributed(optimizer):
        if not inner.optimizer.state:
            if isinstance(inner.optimizer, HybridDeviceOptimizer):
                inner.optimizer.dummy_step()
                continue
            inner._init_optimizer_states_with_dummy_values()
    return optimizer.sharded_state_dict(model_state, is_loading=True, metadata={**metadata, **METADATA})


def load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Put loaded state into the optimizer."""
    if _nothing_learns(optimizer):
        return
    distributed = _distributed(optimizer)
    how = [[{k: g[k] for k in _HOW if k in g} for g in inner.optimizer.param_groups] for inner in distributed]
    for inner in distributed:
        inner._set_main_param_and_optimizer_states = MethodType(_set_states_but_step, inner)  # type: ignore[method-assign]
    optimizer.load_state_dict(state)
    for inner, settings in zip(distributed, how, strict=True):
        for group, own in zip(inner.optimizer.param_groups, settings, strict=True):
            group.update(own)
        fused = any(group.get("fused") for group in inner.optimizer.param_groups)
        for parameter_state in inner.optimizer.state.values():
            if isinstance(parameter_state.get("step"), torch.Tensor):
                there = parameter_state["exp_avg"].device if fused else parameter_state["step"].device
                parameter_state["step"] = parameter_state["step"].to(there, copy=True)
        if isinstance(inner.optimizer, HybridDeviceOptimizer):
            inner.optimizer._sync_hdo_state_to_sub_optimizers()


def _distributed(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    members = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return [member for member in members if isinstance(member, DistributedOptimizer)]


def _nothing_learns(optimizer: MegatronOptimizer) -> bool:
    """Tell whether this pipeline stage is frozen as a whole."""
    distributed = _distributed(optimizer)
    if distributed:
        return not any(buffer.params for inner in distributed for buffer in inner.buffers)
    return getattr(optimizer, "is_stub_optimizer", False) or not optimizer.get_parameters()


def _set_states_but_step(self: DistributedOptimizer, model_param: nn.Parameter, tensors: dict[str, Any]) -> None:
    group, order = self.model_param_group_index_map[model_param]
    main = self.optimizer.param_groups[group]["params"][order]
    state = {name: value for name, value in self.optimizer.state[main].items() if name != "step"}
    # Where masters are the inner optimizer's own (on the host), `main` is the model's parameter, loaded already.
    targets = {"param": state.pop("master_param", main), **state}
    for name, target in targets.items():
        target.copy_(tensors[name])
