"""Positions an indexed data set was built with, for runs that ask for those."""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.data.indexed.layout import Manifest
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.config import ExperimentConfig


def with_recorded_strides(config: ExperimentConfig) -> ExperimentConfig:
    """Return the settings with the positions an indexed data set recorded, where the run asks for those.

    Raises:
        ConfigError: it asks for them without an indexed data set.
        DataError: the data set is damaged.
    """
    if config.v2pe.rope_pos_id_version != "recorded":
        return config
    if not config.data.indexed_path:
        raise ConfigError("v2pe.rope_pos_id_version recorded needs data.indexed_path, which records positions")
    recorded = Manifest.read(Path(config.data.indexed_path)).v2pe
    return config.updated({"v2pe": recorded}, config.data.indexed_path)
