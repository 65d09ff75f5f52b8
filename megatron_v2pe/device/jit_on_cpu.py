"""Megatron-Core without its compiler where there is no GPU.

`megatron.core.jit` wraps small functions in `torch.compile`, which imports Dynamo, Inductor and 800 further modules: a
fifth or more of the time it takes to start a process. Without CUDA none of the wrapped functions runs (fusions are
off), so the module is replaced by one whose `jit_fuser` returns a function as it is. From 0.17 on the router of
experts, which no model here has, compiles a method while it is imported: there `torch.compile` returns it as it is.
On CUDA nothing is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any, TypeVar

MODULE = "megatron.core.jit"
COMPILES_AT_IMPORT = "megatron.core.transformer.moe.router"
Function = TypeVar("Function", bound=Callable[..., Any])


class _Plain(MetaPathFinder, Loader):
    """Finds `megatron.core.jit` and the router of experts, and nothing else, where there is no CUDA."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec of the stand-in, that of the router with its compiler left out, or None for everything else."""
        if fullname not in (MODULE, COMPILES_AT_IMPORT):
            return None
        import torch  # Megatron-Core has imported it already

        if torch.cuda.is_available():
            return None
        if fullname == MODULE:
            return spec_from_loader(fullname, self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _WithoutCompiler(spec.loader)
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Fill the stand-in with the names of the original."""

        def as_it_is(function: Function) -> Function:
            return function

        contents = {"jit_fuser": as_it_is, "noop_decorator": as_it_is}
        contents |= dict.fromkeys(("enable_jit_fuser", "disable_jit_fuser"), lambda: None)
        vars(module).update(contents)


class _WithoutCompiler(Loader):
    """Runs a module while `torch.compile` returns every function as it is."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        import torch

        original = torch.compile

        def as_it_is(model: Any = None, **_: Any) -> Any:
            return (lambda function: function) if model is None else model

        torch.compile = as_it_is
        try:
            self._loader.exec_module(module)
        finally:
            torch.compile = original


def install() -> None:
    """Stand before the usual import of `megatron.core.jit`; again and again has the effect of once."""
    if not any(isinstance(finder, _Plain) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Plain())
