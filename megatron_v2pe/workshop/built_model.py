"""A model of this rank under a layout, for measurements and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from megatron_v2pe.models.build import build_model
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel import topology
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy


@contextmanager
def built(
    hf_config: dict[str, Any],
    layout: ParallelConfig,
    options: ModelOptions,
    policy: StridePolicy,
    image_token_id: int,
    adapt: Callable[[nn.Module], object] | None = None,
) -> Iterator[Any]:
    """Build this rank's pipeline stage under a layout, and forget the layout afterwards.

    Args:
        hf_config: content of a `config.json`.
        layout: of all ranks; the process group is initialised.
        options: of the model.
        policy: positions of images.
        image_token_id: token that stands for a piece of an image.
        adapt: puts adapters on the stage, see `build_model`.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    groups = topology.initialize(layout, seed=1)
    try:
        yield build_model(InternVLConfig.from_hf(hf_config), layout, options, policy, image_token_id, groups, adapt)
    finally:
        topology.destroy()
