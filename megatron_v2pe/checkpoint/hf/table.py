"""Which table belongs to a model: the tower's rows, the projector's, the language model's, one behind the other.

The projector is the same for every model and stands here. The others are their families' (`families/*/hf_table.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.checkpoint.hf.mappings import MappingTable, TensorMapping, mapped
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import LanguageConfig, VisionConfig

TowerRows = Callable[[VisionConfig], Iterable[TensorMapping]]
LanguageRows = Callable[[LanguageConfig], Iterable[TensorMapping]]
TOWER_TABLES: Registry[TowerRows] = Registry("table of a vision tower", FAMILIES, "hf_table")
"""Rows of a tower by what `vision_config.architectures` states."""
LANGUAGE_TABLES: Registry[LanguageRows] = Registry("table of a language model", FAMILIES, "hf_table")
"""Rows of a language model by what `llm_config.architectures` states."""


def mapping_table(model: InternVLConfig) -> MappingTable:
    """Return the table of a model.

    Raises:
        ConfigError: no table is known for its tower or its language model, or a family's table is wrong.
    """
    language = LANGUAGE_TABLES.find(model.llm.architecture)
    if language is None:
        known = ", ".join(LANGUAGE_TABLES)
        raise ConfigError(f"language model {model.llm.architecture!r} cannot be converted; known: {known}")
    tower = TOWER_TABLES.get(model.vision.architecture)
    table = MappingTable((*tower(model.vision), *_projector(model), *language(model.llm)))
    return table.check(f"table of {model.llm.architecture} with {model.vision.architecture}")


def _projector(model: InternVLConfig) -> Iterator[TensorMapping]:
    """Yield the mappings of the two-layer projector between tower and language model."""
    shuffled = model.vision.hidden_size * round(1 / model.downsample_ratio) ** 2
    hidden, target = model.llm.hidden_size, "vision_projection"
    yield mapped("mlp1.0.weight", f"{target}.norm.weight", shuffled)
    yield mapped("mlp1.0.bias", f"{target}.norm.bias", shuffled)
    yield mapped("mlp1.1.weight", f"{target}.linear_fc1.weight", hidden, shuffled)
    yield mapped("mlp1.1.bias", f"{target}.linear_fc1.bias", hidden)
    yield mapped("mlp1.3.weight", f"{target}.linear_fc2.weight", hidden, hidden)
    yield mapped("mlp1.3.bias", f"{target}.linear_fc2.bias", hidden)
