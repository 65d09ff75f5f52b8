"""Which table belongs to which architecture: a further family is one more entry here."""

from __future__ import annotations

from collections.abc import Callable

from megatron_v2pe.checkpoint.hf.internvl import internvl2_table
from megatron_v2pe.checkpoint.hf.mappings import MappingTable
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig

TABLES: dict[str, Callable[[InternVLConfig], MappingTable]] = {"InternLM2ForCausalLM": internvl2_table}
"""Architecture of the language model, as `llm_config.architectures` names it -> table of the whole model."""


def mapping_table(model: InternVLConfig) -> MappingTable:
    """Return the table of a model.

    Raises:
        ConfigError: no table is known for the language model.
    """
    architecture = model.llm.architecture
    if architecture not in TABLES:
        raise ConfigError(f"language model {architecture!r} cannot be converted; known: {', '.join(TABLES)}")
    return TABLES[architecture](model)
