"""The shims that let Megatron-Core run on CPU tensors with gloo: one list, each entry with its reason.

Megatron-Core (0.16 to 0.19) names CUDA in a few dozen places although little of what it does there needs a GPU. Each
`Shim` replaces one attribute; `install()` applies all, `uninstall()` restores what was there. None is active on CUDA.
Replacing the module-level name `torch` of a Megatron module by a thin stand-in costs nothing per tensor operation,
where a global function mode would be consulted on every one of them.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange")
_missing = object()


@dataclass(frozen=True)
class Shim:
    """One replaced attribute."""

    target: str
    """Dotted path `module:attribute` (the attribute may itself be dotted, `torch:Tensor.cuda`)."""
    replacement: Callable[[Any], Any]
    """Maps the original attribute to its stand-in."""
    reason: str

    def resolve(self) -> tuple[Any, str]:
        """Return the object that holds the attribute, and the attribute's name."""
        module, _, path = self.target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        return owner, name


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _cpu_device(device: Any) -> Any:
    return CPU if device is not None and torch.device(device).type == "cuda" else device


def _factory_on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _cpu_device(kwargs["device"])
        return factory(*args, **kwargs)

    return create


class _CpuTorch(types.ModuleType):
    """`torch`, except that tensor factories asked for CUDA create CPU tensors."""

    def __init__(self, original: types.ModuleType) -> None:
        super().__init__(original.__name__)
        for name in _FACTORIES:
            setattr(self, name, _factory_on_cpu(getattr(original, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _stay_on_cpu(_: Any) -> Callable[..., torch.Tensor]:
    def cuda(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self

    return cuda


def _cuda_type_name(original: Callable[..., Any]) -> Callable[..., Any]:
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = original(self, *args, **kwargs)
        if args or kwargs or self.device.type != "cpu":
            return name
        return name.replace("torch.", "torch.cuda.", 1)

    return type_


def _get_cpu_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_cpu_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(new_state)


def _seed_cpu(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


class _NoStream:
    """Stands for a CUDA stream where kernels return when they are done: there is nothing to wait for."""

    wait_event = wait_stream = record_event = synchronize = staticmethod(_nothing)


_NO_STREAM = _NoStream()


def _torch_in(module: str) -> Shim:
    return Shim(f"megatron.core.{module}:torch", _CpuTorch, 'creates tensors with device="cuda"')


SHIMS: tuple[Shim, ...] = (
    Shim("torch:cuda.current_device", lambda _: lambda: CPU, "used as the device of every buffer"),
    Shim("torch:cuda.synchronize", lambda _: _nothing, "CPU kernels return when they are done"),
    Shim(
        "torch:cuda.current_stream",
        lambda _: lambda *_, **__: _NO_STREAM,
        "from 0.17 on, gradient buffers wait on it for a replayed CUDA graph",
    ),
    Shim("torch:cuda.empty_cache", lambda _: _nothing, "there is no caching allocator to empty"),
    Shim("torch:cuda.manual_seed", lambda _: _seed_cpu, "the CPU generator plays the CUDA generator"),
    Shim("torch:cuda.get_rng_state", lambda _: _get_cpu_rng_state, "state of the CPU generator"),
    Shim("torch:cuda.set_rng_state", lambda _: _set_cpu_rng_state, "state of the CPU generator"),
    Shim(
        "megatron.core.tensor_parallel.random:_get_cuda_rng_state",
        lambda _: _get_cpu_rng_state,
        "activation recompute saves the generator's state",
    ),
    Shim(
        "megatron.core.tensor_parallel.random:_set_cuda_rng_state",
        lambda _: _set_cpu_rng_state,
        "activation recompute restores the generator's state",
    ),
    Shim("torch:Tensor.cuda", _stay_on_cpu, "tensors are already where they should be"),
    Shim("torch:Tensor.type", _cuda_type_name, 'optimizers compare the string "torch.cuda.FloatTensor"'),
    _torch_in("pipeline_parallel.schedules"),
    _torch_in("optimizer.optimizer"),
    _torch_in("optimizer.distrib_optimizer"),
    _torch_in("optimizer.clip_grads"),
    _torch_in("distributed.param_and_grad_buffer"),
    _torch_in("utils"),
)

_originals: list[tuple[Any, str, Any]] = []


def installed() -> bool:
    """Tell whether the shims are active."""
    return bool(_originals)


def install() -> None:
    """Apply every shim. Does nothing when they are active already."""
    if installed():
        return
    for shim in SHIMS:
        owner, name = shim.resolve()
        _originals.append((owner, name, vars(owner).get(name, _missing)))
        setattr(owner, name, shim.replacement(getattr(owner, name)))


def uninstall() -> None:
    """Restore every replaced attribute."""
    while _originals:
        owner, name, original = _originals.pop()
        if original is _missing:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
