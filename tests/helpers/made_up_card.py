"""Megatron-Core's CPU-offloaded optimizer on a machine without a GPU: ordinary tensors stand for those of a card.

What it copies "to the host" is remembered, and everything else passes for CUDA's while it deals parameters out.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from megatron.core.optimizer.cpu_offloading import hybrid_optimizer
from torch import Tensor

from helpers import parity, short_runs


class _Stream:
    def wait_stream(self, _: Any) -> None:
        """Copies are done when they return."""

    def record_event(self) -> _Stream:
        """Return something that is waited for."""
        return self

    def wait(self, _: Any) -> None:
        """Nothing is under way."""

    def synchronize(self) -> None:
        """Nothing is under way."""


class _Torch(types.ModuleType):
    """`torch` with streams that do nothing and without pinned memory."""

    cuda = types.SimpleNamespace(Stream=_Stream, current_stream=_Stream, stream=lambda _: nullcontext())

    def empty(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        """Return memory of the ordinary kind."""
        return torch.empty(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def parameters_on_a_card() -> Iterator[list[int]]:
    """Let the offloaded optimizer take all parameters for those of a card; gives the sizes it copied to the host."""
    copied: list[int] = []
    dealt = hybrid_optimizer.HybridDeviceOptimizer._get_sub_optimizer_param_groups

    def deal(self: Any, fraction: float) -> Any:
        host: set[int] = set()

        def on_host(tensor: Tensor) -> Tensor:
            host.add(tensor.untyped_storage().data_ptr())
            return tensor

        def pinned(tensor: Tensor) -> Tensor:
            copied.append(tensor.numel())
            return on_host(tensor)

        def keeping(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                stays = tensor.untyped_storage().data_ptr() in host
                result = original(tensor, *args, **kwargs)
                return on_host(result) if stays else result

            return call

        is_cuda = property(lambda tensor: tensor.untyped_storage().data_ptr() not in host)
        with (
            mock.patch.object(Tensor, "is_cuda", is_cuda, create=True),
            mock.patch.object(Tensor, "pin_memory", pinned),
            mock.patch.object(Tensor, "clone", keeping(Tensor.clone)),
            mock.patch.object(Tensor, "float", keeping(Tensor.float)),
        ):
            return dealt(self, fraction)

    with (
        mock.patch.object(hybrid_optimizer.HybridDeviceOptimizer, "_get_sub_optimizer_param_groups", deal),
        mock.patch.object(hybrid_optimizer, "torch", _Torch("torch")),
    ):
        yield copied


def train_offloaded(case: parity.Case, steps: int, **places: str) -> tuple[short_runs.History, int]:
    """Run `short_runs.train` with the optimizer on the host; gives also how many numbers were copied there at first."""
    settings = replace(short_runs.SETTINGS, optimizer_cpu_offload=True)
    with parameters_on_a_card() as copied:
        history = short_runs.train(case, steps, settings=settings, **places)
    return history, sum(copied)


def train_fused(case: parity.Case, steps: int, **places: str) -> short_runs.History:
    """Run `short_runs.train` with the fused AdamW that a run on a GPU has."""
    from megatron_v2pe.train import optimizer_step

    with mock.patch.object(optimizer_step, "FUSED_ON", ("cpu",)):
        return short_runs.train(case, steps, **places)
