"""Saving and loading an optimizer's state in a distributed checkpoint, around three faults of Megatron-Core 0.16.

Without apex or Transformer Engine the inner optimizer is PyTorch's AdamW, which keeps a step count per parameter, and
the distributed optimizer then (1) asserts that state exists before it is described for loading, (2) looks for a "step"
among loaded tensors, where none is stored, and (3) hands all parameters one and the same step tensor, so that every
step counts once per parameter and the bias correction drifts. Each is mended here, and tested.

Of parameter groups only the number of steps is taken from a checkpoint; rates, decays and betas are those of the run
that goes on. Megatron-Core would look groups up by their multipliers of weight decay, which several groups with
learning rates of their own share, and expects as many of them as were saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
_MASTERS = "masters"
_FROM_CHECKPOINT = ("step",)
"""What a parameter group takes from a checkpoint; all else stays that of the running optimizer."""


def state_to_save(
    optimizer: MegatronOptimizer, model_state: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    """Describe the optimizer's state for saving; there is none on a pipeline stage where nothing learns."""
    if _nothing_learns(optimizer):
        return {}
    state = optimizer.sharded_state_dict(model_state, is_loading=False, metadata={**metadata, **METADATA})
    _masters_by_number(optimizer, state)
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
    with _own_groups(optimizer):
        for inner in _distributed(optimizer):
            if not inner.optimizer.state and not _is_precision_aware(inner):
                if isinstance(inner.optimizer, HybridDeviceOptimizer):
                    inner.optimizer.dummy_step()
                    continue
                inner._init_optimizer_states_with_dummy_values()
        state = optimizer.sharded_state_dict(model_state, is_loading=True, metadata={**metadata, **METADATA})
    _masters_by_number(optimizer, state)
    for part in _parts_of_state(optimizer, state):
        del part["param_groups"]
    return state


def load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Put loaded state into the optimizer; its groups stay as they are, but for the steps done."""
    if _nothing_learns(optimizer):
        return
    for member, part in zip(_members(optimizer), _parts_of_state(optimizer, state), strict=True):
        part["param_groups"] = _with_steps(member.optimizer.state_dict()["param_groups"], part["param_groups"])
        setattr(member, "_filter_and_reorder_param_groups", _as_they_are)  # noqa: B010
    for member, own in zip(_members(optimizer), _states(optimizer, state), strict=True):
        if hasattr(member, "fp32_from_float16_groups"):
            masters = iter(dict(sorted(own.pop(_MASTERS, {}).items())).values())
            own["fp32_from_fp16_params"] = [[next(masters) for _ in group] for group in member.fp32_from_float16_groups]
    distributed = _distributed(optimizer)
    for inner in distributed:
        if _is_precision_aware(inner):
            continue
        inner._set_main_param_and_optimizer_states = MethodType(_set_states_but_step, inner)  # type: ignore[method-assign]
    with _own_groups(optimizer):
        optimizer.load_state_dict(state)
    for inner in distributed:
        fused = any(group.get("fused") for group in inner.optimizer.param_groups)
        for parameter_state in inner.optimizer.state.values():
            if isinstance(parameter_state.get("step"), torch.Tensor):
                there = parameter_state["exp_avg"].device if fused else parameter_state["step"].device
                parameter_state["step"] = parameter_state["step"].to(there, copy=True)
        if isinstance(inner.optimizer, HybridDeviceOptimizer):
            inner.optimizer._sync_hdo_state_to_sub_optimizers()


@contextmanager
def _own_groups(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Give the groups back, afterwards, all that was theirs before, but for what a checkpoint says of them."""
    kept = ("params", *_FROM_CHECKPOINT)
    before = [
        [{k: v for k, v in group.items() if k not in kept} for group in m.param_groups] for m in _members(optimizer)
    ]
    yield
    for member, groups in zip(_members(optimizer), before, strict=True):
        for group, own in zip(member.param_groups, groups, strict=True):
            group.update(own)


def _with_steps(own: list[dict[str, Any]], stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups of the running optimizer with the steps that a checkpoint says were done."""
    steps = {name: group[name] for group in stored for name in _FROM_CHECKPOINT if name in group}
    return [{**group, **steps} for group in own]


def _as_they_are(current: list[dict[str, Any]], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stand in for Megatron-Core's search for the groups of a checkpoint: these are the running optimizer's."""
    return groups


def _parts_of_state(optimizer: MegatronOptimizer, state: dict[Any, Any]) -> list[dict[str, Any]]:
    """Return of the state of each member of an optimizer the part that has `param_groups`."""
    return [own["optimizer"] if "optimizer" in own else own for own in _states(optimizer, state)]


def _states(optimizer: MegatronOptimizer, state: dict[Any, Any]) -> list[dict[str, Any]]:
    """Return the state of each member of an optimizer."""
    members = _members(optimizer)
    return [state] if len(members) == 1 else [state[number] for number in range(len(members))]


def _masters_by_number(optimizer: MegatronOptimizer, state: dict[Any, Any]) -> None:
    """Number the master weights through; a list for each group would be lost where a stage has none of a group."""
    for own in _states(optimizer, state):
        groups = own.pop("fp32_from_fp16_params", None)
        if groups is not None:
            own[_MASTERS] = dict(enumerate(master for group in groups for master in group))


def _members(optimizer: MegatronOptimizer) -> list[Any]:
    return list(optimizer.chained_optimizers) if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def _distributed(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    return [member for member in _members(optimizer) if isinstance(member, DistributedOptimizer)]


def _is_precision_aware(inner: DistributedOptimizer) -> bool:
    """Tell whether Transformer Engine's FusedAdam keeps the state, which Megatron-Core then makes and scales itself."""
    asked = getattr(inner.config, "use_precision_aware_optimizer", False)
    return asked and not isinstance(inner.optimizer, HybridDeviceOptimizer)


def _nothing_learns(optimizer: MegatronOptimizer) -> bool:
    """Tell whether this pipeline stage is frozen as a whole."""
    distributed = _distributed(optimizer)
    if distributed:
        return not any(buffer.params for inner in distributed for buffer in inner.buffers)
    return getattr(optimizer, "is_stub_optimizer", False) or not any(
        one.get_parameters() for one in _members(optimizer)
    )


def _set_states_but_step(self: DistributedOptimizer, model_param: nn.Parameter, tensors: dict[str, Any]) -> None:
    group, order = self.model_param_group_index_map[model_param]
    main = self.optimizer.param_groups[group]["params"][order]
    state = {name: value for name, value in self.optimizer.state[main].items() if name != "step"}
    # Where masters are the inner optimizer's own (on the host), `main` is the model's parameter, loaded already.
    targets = {"param": state.pop("master_param", main), **state}
    for name, target in targets.items():
        target.copy_(tensors[name])
