"""Measured memory: what tensors really take at the worst moment of a call, for tests of the estimates."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the storages made while it is active, and the most that were alive at once.

    What existed before (weights, gradient buffers, optimizer state) does not count.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.peak = 0
        """Bytes at the worst moment."""
        self.alive = 0
        """Bytes now."""
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; storages it returns that none of its arguments has are new."""
        before = {id(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _is_tensor(tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in before and storage not in self._known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known[storage] = None
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.alive -= size


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided
