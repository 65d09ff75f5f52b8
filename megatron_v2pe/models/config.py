"""What an InternVL checkpoint is: its `config.json` as typed, checked dataclasses.

The HF `config.json` stays the one description of an architecture; it travels with every Megatron checkpoint. Its two
sections are read by the families of the language model and of the vision tower (`config_sections.py`), the whole here.
A file in transformers' native form is translated to the original one first (`native_config.py`). Nothing here knows
about parallelism or tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.files import check_links
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.models.config_fields import LARGEST_SIDE, check_null, check_top
from megatron_v2pe.models.config_kind import Kind, kind_of_model
from megatron_v2pe.models.config_sections import LanguageConfig, VisionConfig
from megatron_v2pe.models.native_config import NATIVE, layout_of_config, to_original
from megatron_v2pe.v2pe.settings import V2PESettings

DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64", "auto")
"""What `torch_dtype` may say; the weights' own headers decide."""
NORMALIZE_TYPES = ("imagenet", "clip", "siglip")
"""Normalisations of pixels by name; their numbers are those of `data.image_operations`."""
LARGEST_CONFIG = 1 << 24
"""Bytes of a `config.json`, at most."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class InternVLConfig:
    """An InternVL chat model: tower, projector, language model and how images become tokens."""

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
        """Read the `config.json` of an InternVL checkpoint, in its original or in transformers' native form.

        Raises:
            ConfigError: another architecture, a field that is missing, of another type or out of range, or a
                combination that cannot be built; names `source`, the field, what was found and what was expected.
        """
        native = layout_of_config(config) == NATIVE
        config = to_original(config, source)
        top = Fields(config, source, ConfigError)
        kind = kind_of_model(top, native)
        _check_present(top, kind)
        for section in (top, top.section("vision_config"), top.section("llm_config")):
            for name in ("torch_dtype", "dtype"):
                section.text(name, None, (*DTYPE_NAMES, *(f"torch.{dtype}" for dtype in DTYPE_NAMES)))
        vision, llm = kind.read_vision(), kind.read_language()
        check_null(top, "ps_version", "select_layer", "downsample_ratio")
        least, most = top.whole("min_dynamic_patch", 1, 1, 1000), top.whole("max_dynamic_patch", 6, 1, 1000)
        if least > most:
            raise ConfigError(f"{source}: min_dynamic_patch {least} is above max_dynamic_patch {most}")
        v2pe = V2PESettings.from_config(config, source)
        tile_size = top.whole("force_image_size", vision.image_size, vision.patch_size, LARGEST_SIDE)
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
            template=_template(top, kind),
            v2pe=v2pe,
        )
        check_top(top, select_layer=result.select_layer, tokens_per_tile=result.tokens_per_tile)
        return result

    @classmethod
    def from_folder(cls, folder: str | Path) -> InternVLConfig:
        """Read `config.json` of an HF checkpoint folder; it raises what `read_config` and `from_hf` raise."""
        return cls.from_hf(read_config(folder), printable(Path(folder) / "config.json"))

    def with_vision(self, **changes: Any) -> InternVLConfig:
        """Return a copy whose vision tower differs in the given fields."""
        return replace(self, vision=replace(self.vision, **changes))


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of `config.json` of an HF checkpoint folder in its original form.

    A file in original form is returned with its fields as they are; one in transformers' native form is translated.
    Every tool that opens such a folder comes here first, so that this is the place where its links are looked at.

    Raises:
        ConfigError: no such file, no regular file, not JSON, no object, a field that stands twice, a link that leaves
            the folder, or a native file that cannot be used.
    """
    config, path = read_stated(folder), printable(Path(folder) / "config.json")
    if layout_of_config(config) == NATIVE:
        InternVLConfig.from_hf(config, path)  # which names fields as the file does
    return to_original(config, path)


def layout_of(folder: str | Path) -> str:
    """Return the layout of an HF checkpoint folder, `original` or `native`; it raises what `read_stated` raises."""
    return layout_of_config(read_stated(folder))


def read_stated(folder: str | Path) -> dict[str, Any]:
    """Return the content of `config.json` of an HF checkpoint folder in the form that the file has.

    Raises:
        ConfigError: no such file, no regular file, not JSON, no object, a field that stands twice, or a link that
            leaves the folder.
    """
    path = Path(folder) / "config.json"
    if not os.path.lexists(path):  # before the whole folder is walked through: it may be any folder
        where = f"{printable(path)}: no such file; an InternVL checkpoint folder holds a config.json"
        raise ConfigError(where + _of_hub(Path(folder)))
    check_links(Path(folder), ConfigError)
    return read_json_object(path, ConfigError, LARGEST_CONFIG, unique=True)


def _of_hub(folder: Path) -> str:
    """Name the revisions in a folder of the Hugging Face hub's cache, if this is one."""
    found = sorted(path.parent for path in folder.glob("snapshots/*/config.json"))
    return f"; of a folder of the hub's cache, give the revision: {printable(found[-1])}" if found else ""


def _check_present(top: Fields, kind: Kind) -> None:
    """Name all fields at once that have to be there and are not."""
    parts = {"vision_config": kind.vision, "llm_config": kind.language}
    missing = [f"{section}.{name}" for section, part in parts.items() for name in part.missing]
    if len(missing) > 1:
        raise ConfigError(f"{top.source}: fields are missing: {', '.join(missing)}")


def _template(top: Fields, kind: Kind) -> str:
    """Return the name of the conversation template; which names are known is `data.conversation`'s to say."""
    name = top.text("template", None) or ""
    if not name:  # the published class has no default either
        if (usual := kind.language.reader.template) is None:
            raise ConfigError(f"{top.source}: field 'template' is missing: the name of the conversation template")
        name = usual
        _say_template(top.source, name)
    if len(name) > 100 or printable(name) != name:
        raise ConfigError(f"{top.source}: template: found {printable(name)[:40]!r}..., expected a name on one line")
    return name


@cache
def _say_template(source: str, name: str) -> None:
    """Say which template is taken, once for a file that is read in several places."""
    _log.warning("%s: no template is stated; conversations are taken to be of %s", source, name)


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
