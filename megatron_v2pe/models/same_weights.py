"""A model that is asked while it is trained: modules of its own around the very parameters that training changes.

Training and generation want other things of a module: training mode, sequence parallelism, hooks that gather parameters
ahead of a forward pass, positions of the run's policy. Nothing of it is switched back and forth. The second model is
built of shallow copies of the modules, in evaluation mode, without hooks and without sequence parallelism, over process
groups that may be others; its parameters are the same objects, so that it takes no memory and always has the weights of
the last step.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from types import MethodType
from typing import Any, cast

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from megatron_v2pe.models.vlm import InternVLModel

_SEQUENCE_PARALLEL = ("sequence_parallel", "reduce_scatter_embeddings")
"""Attributes of modules that say that inputs or results are slices of a sequence."""


def asked_beside_training(
    model: InternVLModel, groups: Mapping[dist.ProcessGroup, dist.ProcessGroup] | None = None
) -> InternVLModel:
    """Return a model of the same parameters for evaluation.

    Args:
        model: this rank's pipeline stage, as it is trained; it is left as it is.
        groups: process group of the model -> the one that takes its place; by default all stay.

    Returns:
        The stage in evaluation mode; its whole sequences lie on every tensor-parallel rank.
    """
    twins = _Twins(groups or {})
    for module in model.modules():
        twins.add(module)
    twins.connect()
    twin = cast(InternVLModel, twins.of[model])
    twin.coordinates = replace(model.coordinates, sequence_parallel=False)
    return twin


class _Twins:
    """Shallow copies of modules that refer to one another as the modules do."""

    def __init__(self, groups: Mapping[dist.ProcessGroup, dist.ProcessGroup]) -> None:
        self.of: dict[nn.Module, nn.Module] = {}
        self._groups = groups
        self._collections: dict[int, ProcessGroupCollection] = {}
        self._configs: dict[int, TransformerConfig] = {}

    def add(self, module: nn.Module) -> None:
        twin = object.__new__(type(module))
        twin.__dict__ = dict(module.__dict__)
        self.of[module] = twin

    def connect(self) -> None:
        for twin in self.of.values():
            for name, value in list(twin.__dict__.items()):
                twin.__dict__[name] = self._replaced(name, value)
            twin.training = False

    def _replaced(self, name: str, value: Any) -> Any:
        if name == "_modules":
            return {key: None if child is None else self.of[child] for key, child in value.items()}
        if name in ("_parameters", "_buffers"):
            return dict(value)  # the dictionary is a copy, what it names is not
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
            return OrderedDict[Any, Any]()
        if name in _SEQUENCE_PARALLEL and isinstance(value, bool):
            return False
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self.of.get(value.__self__, value.__self__))
        if isinstance(value, TransformerConfig):
            return self._config(value)
        if isinstance(value, ProcessGroupCollection):
            return self._collection(value)
        if isinstance(value, dist.ProcessGroup):
            return self._groups.get(value, value)
        return value

    def _config(self, config: TransformerConfig) -> TransformerConfig:
        if id(config) not in self._configs:
            self._configs[id(config)] = copied = copy.copy(config)
            copied.sequence_parallel = False
        return self._configs[id(config)]

    def _collection(self, groups: ProcessGroupCollection) -> ProcessGroupCollection:
        if id(groups) not in self._collections:
            self._collections[id(groups)] = copied = copy.copy(groups)
            for name, group in vars(groups).items():
                if isinstance(group, dist.ProcessGroup):
                    setattr(copied, name, self._groups.get(group, group))
        return self._collections[id(groups)]
