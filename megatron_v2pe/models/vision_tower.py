"""What the model asks of a vision tower, and which family builds the one that a checkpoint has.

A family's `tower.py` registers a function that builds its tower. `families/internvit/tower.py` is one to learn from.
"""

from __future__ import annotations

from collections.abc import Callable

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import nn

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig


class VisionTower(MegatronModule):
    """A tower; called with tiles [tiles, 3, size, size] and the key of drop-path draws (or None).

    It returns [tiles, 1 + patches, hidden], the patches row by row behind one further token, which is left out. Its
    `config` is that of the projector's linears too. Every parameter is used in every forward pass, but for those that
    `unused_parameters` names.
    """

    def parameters_in_order_of_use(self) -> list[nn.Parameter]:
        """Return all parameters in the order a forward pass meets them; by default as they are registered."""
        return list(self.parameters())

    def unused_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that take part in no forward pass; by default there are none."""
        return []


TowerBuilder = Callable[[InternVLConfig, ParallelConfig, ModelOptions, ProcessGroupCollection], VisionTower]
TOWERS: Registry[TowerBuilder] = Registry("vision tower", FAMILIES, "tower")
"""Builders by what `vision_config.architectures` states: of the model, the layout, how it is built and run, and the
tower's process groups (tensor parallel, or of one rank where every rank has a whole tower)."""
