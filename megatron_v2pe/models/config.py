"""What an InternVL2 checkpoint is: its `config.json` as typed, checked dataclasses.

The HF `config.json` stays the one description of an architecture; it travels with every Megatron checkpoint.
Nothing here knows about parallelism or tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.files import check_links
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.models.config_fields import GELU, SILU, check_language, check_null, check_top, check_vision
from megatron_v2pe.models.config_kind import check_kind
from megatron_v2pe.models.config_rope import RopeConfig, rope_config
from megatron_v2pe.v2pe.settings import V2PESettings

VOCAB_PADDING_MULTIPLE = 128
"""Vocabulary rows are padded to this multiple whatever the tensor parallel size, so that one shape serves all."""
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64", "auto")
"""What `torch_dtype` may say; the weights' own headers decide."""
NORMALIZE_TYPES = ("imagenet", "clip", "siglip")
"""Normalisations of pixels by name; their numbers are `data.image_transform`'s."""
_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
_NEEDED = {"vision_config": (*_SIZES, "patch_size", "image_size"), "llm_config": (*_SIZES, "vocab_size")}
"""Fields of each section for which there is no default."""
LARGEST_CONFIG = 1 << 24
"""Bytes of a `config.json`, at most."""
_USUAL_TEMPLATE = "internlm2-chat"
_log = get_logger(__name__)
_told: set[str] = set()
_MOST_LAYERS, _WIDEST, _LARGEST_VOCABULARY, _MOST_POSITIONS, _LARGEST_SIDE = 1000, 1 << 17, 1 << 24, 1 << 30, 1 << 14


@dataclass(frozen=True)
class VisionConfig:
    """InternViT: the `vision_config` of the checkpoint."""

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
    """InternLM2: the `llm_config` of the checkpoint."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    initializer_range: float
    tie_word_embeddings: bool
    rope: RopeConfig

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        """Vocabulary rows held in memory: `vocab_size` rounded up to a multiple of 128."""
        return -(-self.vocab_size // VOCAB_PADDING_MULTIPLE) * VOCAB_PADDING_MULTIPLE


@dataclass(frozen=True)
class InternVLConfig:
    """An InternVL2 chat model: tower, projector, language model and how images become tokens."""

    vision: VisionConfig
    llm: LanguageConfig
    downsample_ratio: float
    ps_version: str
    select_layer: int
    tile_size: int
    """Side of a tile in pixels (`force_image_size`, or the tower's `image_size`)."""
    dynamic_image_size: bool
    use_thumbnail: bool
    min_dynamic_patch: int
    max_dynamic_patch: int
    dynamic_max_patch: bool
    """Whether `max_dynamic_patch` is shared among the images of a conversation."""
    pad2square: bool
    normalize_type: str
    """One of `NORMALIZE_TYPES`. Not a published field: training writes it where it is not `imagenet`."""
    template: str
    v2pe: V2PESettings
    """The positions it was trained with; of a version `v2pe_fix` the stride may be missing."""

    @property
    def tokens_per_tile(self) -> int:
        """Language-model tokens one tile becomes: `(tile / patch)^2 * ratio^2`."""
        return int((self.tile_size // self.vision.patch_size) ** 2 * self.downsample_ratio**2)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str = "config.json") -> InternVLConfig:
        """Read the `config.json` of an InternVL2 checkpoint.

        Raises:
            ConfigError: another architecture, a field that is missing, of another type or out of range, or a
                combination that cannot be built; names `source`, the field, what was found and what was expected.
        """
        top = Fields(config, source, ConfigError)
        check_kind(top)
        _check_present(top)
        for section in (top, top.section("vision_config"), top.section("llm_config")):
            for name in ("torch_dtype", "dtype"):
                section.text(name, None, (*DTYPE_NAMES, *(f"torch.{dtype}" for dtype in DTYPE_NAMES)))
        vision = _vision_config(top.section("vision_config"))
        llm = _language_config(top.section("llm_config"))
        check_null(top, "ps_version", "select_layer", "downsample_ratio")
        least, most = top.whole("min_dynamic_patch", 1, 1, 1000), top.whole("max_dynamic_patch", 6, 1, 1000)
        if least > most:
            raise ConfigError(f"{source}: min_dynamic_patch {least} is above max_dynamic_patch {most}")
        v2pe = V2PESettings.from_config(config, source)
        tile_size = top.whole("force_image_size", vision.image_size, vision.patch_size, _LARGEST_SIDE)
        result = cls(
            vision=vision,
            llm=llm,
            downsample_ratio=_downsample_ratio(top, tile_size, vision.patch_size),
            ps_version=top.text("ps_version", "v1", ("v1", "v2")),
            select_layer=top.whole("select_layer", -1, -vision.num_layers - 1, vision.num_layers),
            tile_size=tile_size,
            dynamic_image_size=top.flag("dynamic_image_size", False),
            use_thumbnail=top.flag("use_thumbnail", False),
            min_dynamic_patch=least,
            max_dynamic_patch=most,
            dynamic_max_patch=top.flag("dynamic_max_patch", False),
            pad2square=top.flag("pad2square", False),
            normalize_type=top.text("normalize_type", "imagenet", NORMALIZE_TYPES),
            template=_template(top),
            v2pe=v2pe,
        )
        check_top(top, select_layer=result.select_layer, tokens_per_tile=result.tokens_per_tile)
        return result

    @classmethod
    def from_folder(cls, folder: str | Path) -> InternVLConfig:
        """Read `config.json` of an HF checkpoint folder; errors as of `read_config` and `from_hf`."""
        return cls.from_hf(read_config(folder), printable(Path(folder) / "config.json"))

    def with_vision(self, **changes: Any) -> InternVLConfig:
        """Return a copy whose vision tower differs in the given fields."""
        return replace(self, vision=replace(self.vision, **changes))


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of `config.json` of an HF checkpoint folder, its fields as they are.

    Every tool that opens such a folder comes here first, so that this is the place where its links are looked at.

    Raises:
        ConfigError: no such file, no regular file, not JSON, no object, a field that stands twice, or a link that
            leaves the folder.
    """
    path = Path(folder) / "config.json"
    if not os.path.lexists(path):  # before the whole folder is walked through: it may be any folder
        where = f"{printable(path)}: no such file; an InternVL2 checkpoint folder holds a config.json"
        raise ConfigError(where + _of_hub(Path(folder)))
    check_links(Path(folder), ConfigError)
    return read_json_object(path, ConfigError, LARGEST_CONFIG, unique=True)


def _of_hub(folder: Path) -> str:
    """Name the revisions in a folder of the Hugging Face hub's cache, if this is one."""
    found = sorted(path.parent for path in folder.glob("snapshots/*/config.json"))
    return f"; of a folder of the hub's cache, give the revision: {printable(found[-1])}" if found else ""


def _check_present(top: Fields) -> None:
    """Name all fields at once that have to be there and are not."""
    missing = [
        f"{section}.{name}"
        for section, needed in _NEEDED.items()
        for name in needed
        if top.section(section).content.get(name) is None
    ]
    if len(missing) > 1:
        raise ConfigError(f"{top.source}: fields are missing: {', '.join(missing)}")


def _template(top: Fields) -> str:
    """Return the name of the conversation template; which names are known is `data.conversation`'s to say."""
    name = top.text("template", None) or ""
    if not name:  # the published class has no default either; said once, for the file is read in several places
        name = _USUAL_TEMPLATE
        if top.source not in _told:
            _told.add(top.source)
            _log.warning("%s: no template is stated; conversations are taken to be of %s", top.source, name)
    if len(name) > 100 or printable(name) != name:
        raise ConfigError(f"{top.source}: template: found {printable(name)[:40]!r}..., expected a name on one line")
    return name


def _downsample_ratio(top: Fields, tile_size: int, patch_size: int) -> float:
    """Return the ratio of pixel shuffle: 1 over a whole number that divides the grid of patches of a tile."""
    ratio = top.number("downsample_ratio", 0.5, 1 / 64, 1)
    if tile_size % patch_size:
        raise ConfigError(f"{top.source}: tile size {tile_size} is not a multiple of patch size {patch_size}")
    grid, block = tile_size // patch_size, round(1 / ratio)
    if block * ratio != 1 or grid % block or int(grid**2 * ratio**2) != (grid // block) ** 2:
        raise ConfigError(
            f"{top.source}: downsample_ratio: found {ratio}, expected 1 over a whole number that divides the {grid} "
            "patches of a tile's side"
        )
    return ratio


def _heads(section: Fields, hidden_size: int) -> int:
    heads = section.whole("num_attention_heads", least=1, most=_WIDEST)
    if hidden_size % heads:
        raise ConfigError(f"{section.source}: hidden_size {hidden_size} is not a multiple of {heads} heads")
    return heads


def _vision_config(section: Fields) -> VisionConfig:
    where, hidden_size = section.source, section.whole("hidden_size", least=1, most=_WIDEST)
    patch_size = section.whole("patch_size", least=1, most=1024)
    check_null(section, "hidden_act", "layer_norm_eps")
    section.text("hidden_act", "gelu", GELU)
    for name in ("dropout", "attention_dropout"):
        if rate := section.number(name, 0.0, 0, 1):
            raise ConfigError(f"{where}: {name}: found {rate}, expected 0: dropout is not computed")
    config = VisionConfig(
        hidden_size=hidden_size,
        num_layers=section.whole("num_hidden_layers", least=1, most=_MOST_LAYERS),
        num_attention_heads=_heads(section, hidden_size),
        ffn_hidden_size=section.whole("intermediate_size", least=1, most=8 * _WIDEST),
        image_size=section.whole("image_size", least=patch_size, most=_LARGEST_SIDE),
        patch_size=patch_size,
        num_channels=section.whole("num_channels", 3),
        qkv_bias=section.flag("qkv_bias", False),
        qk_normalization=section.flag("qk_normalization", "qk_normalization" not in section.content),  # null: false
        norm_type=section.text("norm_type", "rms_norm", ("layer_norm", "rms_norm")),
        norm_eps=_norm_eps(section, "layer_norm_eps"),
        drop_path_rate=section.number("drop_path_rate", 0.0, 0, 0.99),
        initializer_factor=section.number("initializer_factor", 0.1, 0, 1000),
        initializer_range=section.number("initializer_range", 0.02, 0, 100),
    )
    if config.num_channels != 3:
        raise ConfigError(f"{where}: num_channels: found {config.num_channels}, expected 3: images are read as RGB")
    if config.qk_normalization or config.norm_type == "rms_norm":
        raise ConfigError(
            f"{where}: qk_normalization={config.qk_normalization}, norm_type={config.norm_type}: the InternViT-6B "
            "tower is not supported yet; supported is InternViT-300M (layer_norm, no q/k normalisation). Where "
            "a field is missing, the published class takes qk_normalization true and norm_type rms_norm"
        )
    check_vision(
        section,
        qkv_bias=config.qkv_bias,
        qk_normalization=config.qk_normalization,
        norm_type=config.norm_type,
        norm_eps=config.norm_eps,
        head_dim=config.head_dim,
    )
    return config


def _norm_eps(section: Fields, name: str) -> float:
    return section.number(name, 1e-6, 1e-30, 0.1)


def _language_config(section: Fields) -> LanguageConfig:
    where, architecture = section.source, "InternLM2ForCausalLM"
    check_null(section, "hidden_act", "rms_norm_eps", "max_position_embeddings")
    if section.flag("bias", "bias" not in section.content):  # null is false to it
        found = "found true" if section.content.get("bias") else "missing, for which the published class takes true"
        raise ConfigError(
            f"{where}: bias: {found}; supported is InternLM2 without biases (false), as InternVL2 checkpoints are"
        )
    section.text("hidden_act", "silu", SILU)
    hidden_size = section.whole("hidden_size", least=1, most=_WIDEST)
    heads = _heads(section, hidden_size)
    positions = section.whole("max_position_embeddings", 2048, 1, _MOST_POSITIONS)
    config = LanguageConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        num_layers=section.whole("num_hidden_layers", least=1, most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_query_groups=section.whole("num_key_value_heads", heads, 1, heads),
        ffn_hidden_size=section.whole("intermediate_size", least=1, most=8 * _WIDEST),
        vocab_size=section.whole("vocab_size", least=1, most=_LARGEST_VOCABULARY),
        max_position_embeddings=positions,
        norm_eps=_norm_eps(section, "rms_norm_eps"),
        initializer_range=section.number("initializer_range", 0.02, 0, 100),
        tie_word_embeddings=section.flag("tie_word_embeddings", False),
        rope=rope_config(section, positions),
    )
    if heads % config.num_query_groups:
        raise ConfigError(
            f"{where}: {heads} heads are not a multiple of {config.num_query_groups} key-value heads "
            "(num_key_value_heads)"
        )
    if config.head_dim % 2:
        raise ConfigError(
            f"{where}: hidden_size {hidden_size} over {heads} heads is {config.head_dim}, expected an even number: "
            "rotary embedding turns pairs"
        )
    scaled = config.rope.scaling_type != "none"
    check_language(section, norm_eps=config.norm_eps, head_dim=config.head_dim, max_positions=positions, scaled=scaled)
    return config
