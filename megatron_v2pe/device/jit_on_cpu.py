"""Megatron-Core without its compiler where there is no GPU.

`megatron.core.jit` wraps small functions in `torch.compile`, which imports Dynamo, Inductor and 800 further modules: a
fifth or more of the time it takes to start a process. Without CUDA none of the wrapped functions runs (fusions are
off), so the module is replaced by one whose `jit_fuser` returns a function as it is. On CUDA nothing is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any, TypeVar

MODULE = "megatron.core.jit"
Function = TypeVar("Function", bound=Callable[..., Any])


class _Plain(MetaPathFinder, Loader):
    """Finds `megatron.core.jit`, and nothing else, where there is no CUDA."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec of the stand-in, or None for everything else."""
        if fullname != MODULE:
            return None
        import torch  # Megatron-Core has imported it already

        return None if torch.cuda.is_available() else spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the stand-in with the names of the original."""

        def as_it_is(function: Function) -> Function:
            return function

        contents = {"jit_fuser": as_it_is, "noop_decorator": as_it_is}
        contents |= dict.fromkeys(("enable_jit_fuser", "disable_jit_fuser"), lambda: None)
        vars(module).update(contents)


def install() -> None:
    """Stand before the usual import of `megatron.core.jit`; again and again has the effect of once."""
    if not any(isinstance(finder, _Plain) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Plain())
