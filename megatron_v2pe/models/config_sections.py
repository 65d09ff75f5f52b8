"""The two sections of a `config.json` that belong to a family: what they become, and which family reads them.

`vision_config` describes the vision tower and `llm_config` the language model. A family's `config.py` reads one of
them: a function from the section to a `VisionConfig` or a `LanguageConfig`, registered with a decorator under the name
that `architectures` states. What the rest of the program knows of a model stands in these two classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_rope import RopeConfig

VOCAB_PADDING_MULTIPLE = 128
"""Vocabulary rows in memory are a multiple of this number and of the tensor parallel size."""
Config = TypeVar("Config")


def share(count: int, degree: int) -> int:
    """Return how many of so many rows, heads or columns a tensor-parallel rank holds, padding included."""
    return -(-count // degree)


def padded(count: int, degree: int) -> int:
    """Return how many all ranks hold together: `count`, rounded up to a multiple of the tensor-parallel size."""
    return share(count, degree) * degree


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower: the `vision_config` of the checkpoint."""

    architecture: str
    """Name under which the family has registered its configuration, its table and its tower."""
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    ffn_hidden_size: int
    image_size: int
    """Side of the grid the stored position embedding was trained for, in pixels."""
    patch_size: int
    num_channels: int
    qkv_bias: bool
    qk_normalization: bool
    norm_type: str
    """`layer_norm` (300M) or `rms_norm` (6B)."""
    norm_eps: float
    drop_path_rate: float
    initializer_factor: float
    """Initial value of the layer scales."""
    initializer_range: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class LanguageConfig:
    """A language model: the `llm_config` of the checkpoint.

    All models have RMSNorm before attention and before the MLP, rotary positions and grouped query heads. Their layers
    are those of `models/language_model.py` unless the family registers others.
    """

    architecture: str
    """Name under which the family has registered its configuration and its table."""
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    """Heads of keys and values; every one serves `num_attention_heads / num_query_groups` query heads."""
    head_dim: int
    """Width of one attention head, even; the heads together may be wider or narrower than `hidden_size`."""
    ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    initializer_range: float
    tie_word_embeddings: bool
    """Whether the output projection is the embedding's own weight."""
    rope: RopeConfig
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values have biases."""
    qk_layernorm: bool = False
    """Whether every head of queries and keys has an RMSNorm over its own width, before it is rotated."""

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads together, which is that of the value heads."""
        return self.num_query_groups * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the joint projection to queries, keys and values."""
        return self.query_size + 2 * self.key_size

    @property
    def padded_vocab_size(self) -> int:
        """Vocabulary rows in memory of one process: `vocab_size` rounded up to a multiple of 128."""
        return self.vocabulary_rows(1)

    def vocabulary_rows(self, tensor_parallel: int) -> int:
        """Return the vocabulary rows in memory of all ranks of a tensor parallel size: what it and 128 divide."""
        multiple = math.lcm(VOCAB_PADDING_MULTIPLE, tensor_parallel)
        return -(-self.vocab_size // multiple) * multiple

    def check(self, section: Fields) -> None:
        """Check that heads, groups and widths go together.

        Raises:
            V2PEError: of the section's class: they do not; names the numbers.
        """
        heads, groups = self.num_attention_heads, self.num_query_groups
        if heads % groups:
            raise section.error(
                f"{section.source}: {heads} heads are not a multiple of {groups} key-value heads (num_key_value_heads)"
            )
        if self.head_dim % 2:
            of = f"hidden_size {self.hidden_size} over {heads} heads"
            width = of if self.query_size == self.hidden_size else "head_dim"
            raise section.error(
                f"{section.source}: {width} is {self.head_dim}, expected an even number: rotary embedding turns pairs"
            )


@dataclass(frozen=True)
class SectionReader(Generic[Config]):
    """How a family reads its section of a `config.json`."""

    read: Callable[[Fields], Config]
    title: str
    """Name of the family in messages: `InternLM2`."""
    model_types: tuple[str, ...]
    """What `model_type` of the section may say."""
    needed: tuple[str, ...]
    """Fields without which the section cannot be read; those that are missing are named together."""
    template: str | None
    """Conversation template where the checkpoint states none; None: it has to state one."""
    example: str | None
    """A published checkpoint of the family, for messages."""
    is_default: bool
    """Whether it reads a section that says neither `architectures` nor `model_type`."""


LANGUAGE_MODELS: Registry[SectionReader[LanguageConfig]] = Registry("language model", FAMILIES, "config")
"""Readers of `llm_config` by what its `architectures` states."""
VISION_TOWERS: Registry[SectionReader[VisionConfig]] = Registry("vision tower", FAMILIES, "config")
"""Readers of `vision_config` by what its `architectures` states."""


def language_model(
    architecture: str,
    *,
    title: str,
    model_types: tuple[str, ...],
    needed: tuple[str, ...] = (),
    template: str | None = None,
    example: str | None = None,
) -> Callable[[Callable[[Fields], LanguageConfig]], Callable[[Fields], LanguageConfig]]:
    """Return a decorator that registers a function as the reader of a language model's section.

    Args:
        architecture: what `llm_config.architectures` states.
        title: as in `SectionReader`, like all that follow.
        model_types: see there.
        needed: see there.
        template: see there.
        example: see there.
    """

    def registered(read: Callable[[Fields], LanguageConfig]) -> Callable[[Fields], LanguageConfig]:
        reader = SectionReader(read, title, model_types, needed, template, example, is_default=False)
        LANGUAGE_MODELS.add(architecture, reader)
        return read

    return registered


def vision_tower(
    architecture: str,
    *,
    title: str,
    model_types: tuple[str, ...],
    needed: tuple[str, ...] = (),
    is_default: bool = False,
) -> Callable[[Callable[[Fields], VisionConfig]], Callable[[Fields], VisionConfig]]:
    """Return a decorator that registers a function as the reader of a vision tower's section.

    Args:
        architecture: what `vision_config.architectures` states.
        title: as in `SectionReader`, like all that follow.
        model_types: see there.
        needed: see there.
        is_default: see there.
    """

    def registered(read: Callable[[Fields], VisionConfig]) -> Callable[[Fields], VisionConfig]:
        reader = SectionReader(read, title, model_types, needed, None, None, is_default)
        VISION_TOWERS.add(architecture, reader)
        return read

    return registered
