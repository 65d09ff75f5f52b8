"""HF folders of the published code whose weights and adapter lie together: what `use_llm_lora` trained, never merged.

The published class wraps its parts with peft when `use_backbone_lora` or `use_llm_lora` of `config.json` is a rank,
with alpha twice the rank, and saves what it then has:

    language_model.base_model.model.model.layers.0.attention.wqkv.base_layer.weight
    language_model.base_model.model.model.layers.0.attention.wqkv.lora_A.default.weight

Such a folder is read as its base under the base's own names, and an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.hf.adapter_files import is_adapter_tensor
from megatron_v2pe.checkpoint.hf.folder import FileLayout, HFWeights
from megatron_v2pe.checkpoint.hf.safetensors_io import header_of
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter, StatedBase
from megatron_v2pe.checkpoint.low_rank.peft_config import PeftConfig
from megatron_v2pe.checkpoint.low_rank.peft_folder import fitted
from megatron_v2pe.checkpoint.low_rank.peft_halves import halves_of
from megatron_v2pe.checkpoint.resolve import has_weights
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config import InternVLConfig, read_config

RANKS = {"vision_model.": "use_backbone_lora", "language_model.": "use_llm_lora"}
"""How names of a part begin -> the field of `config.json` that states the rank of its adapter."""
_WRAP, _LAYER = "base_model.model.", ".base_layer."
_DROPOUT = 0.05
"""As the published code wraps its parts."""
_LARGEST_RANK = 1 << 16
_log = get_logger(__name__)


class BaseWeights:
    """The weights of the base of an unmerged folder under the base's names."""

    def __init__(self, weights: HFWeights) -> None:
        """Leave the adapter out of a folder's weights."""
        self._weights = weights
        self._stored: dict[str, str] = {}
        shards = []
        for file, header in weights.layout.shards:
            places = [place for place in header.tensors if not is_half(place.name)]
            self._stored.update((base_name(place.name), place.name) for place in places)
            shards.append((file, header_of((base_name(place.name), place.shape, place.dtype) for place in places)))
        self._layout = FileLayout(tuple(shards))

    @property
    def layout(self) -> FileLayout:
        """How the base's weights would be cut into files."""
        return self._layout

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, see `HFWeights.tensor`."""
        return self._weights.tensor(self._stored[name])

    def read_into(self, name: str, begin: int, out: memoryview) -> None:
        """Read bytes of a tensor, see `HFWeights.read_into`."""
        self._weights.read_into(self._stored[name], begin, out)


@dataclass(frozen=True)
class OpenWeights:
    """The weights of an HF folder: those of a model, or of a base with the adapter that lies among them."""

    config: dict[str, Any]
    """Content of `config.json` as it is of the model without an adapter."""
    weights: HFWeights | BaseWeights
    halves: Mapping[str, Tensor] | None = None
    """Tensors of the adapter by their names without `base_model.model.`; None: there is none."""
    ranks: Mapping[str, int] | None = None
    """Rank by how names of a part begin."""

    def adapter(self, model: InternVLConfig, folder: Path) -> Adapter:
        """Return the adapter of an unmerged folder.

        Raises:
            CheckpointError: its tensors do not fit the model, or not the ranks that `config.json` states.
        """
        assert self.halves is not None and self.ranks is not None
        source = printable(folder)
        halves = halves_of(self.halves, source)
        ranks = {
            module: next((rank for begin, rank in self.ranks.items() if module.startswith(begin)), 0)
            for module in halves.down
        }
        if unstated := sorted(module for module, rank in ranks.items() if not rank):
            fields = " or ".join(RANKS.values())
            raise CheckpointError(
                f"{source}: {printable(unstated[0])[:200]} has an adapter, and config.json states no rank for its part "
                f"({fields}), from which its scaling would follow: state it there, or merge with peft"
            )
        alphas = {module: 2.0 * rank for module, rank in ranks.items()}
        first = next(iter(ranks.values()))
        config = PeftConfig(first, 2.0 * first, (), dropout=_DROPOUT, ranks=ranks, alphas=alphas, file="config.json")
        adapter = fitted(halves, config, model, source)
        return Adapter(source, adapter.table, adapter.changes, {}, _DROPOUT, StatedBase(source))


def open_weights(folder: Path) -> OpenWeights:
    """Open the weights of an HF folder, with an adapter among them or without.

    Raises:
        ConfigError: `config.json` cannot be read.
        CheckpointError: weights are missing or damaged.
    """
    config = read_config(folder)  # before the weights: without it the folder is no checkpoint
    weights = HFWeights(folder)
    names = weights.layout.places()
    halves = {name.replace(_WRAP, "", 1): weights.tensor(name) for name in names if is_half(name)}
    if not halves or not any(_LAYER in name for name in names):
        return OpenWeights(config, weights)
    fields = Fields(config, printable(folder / "config.json"), CheckpointError)
    ranks = {begin: fields.whole(name, 0, 0, _LARGEST_RANK) for begin, name in RANKS.items()}
    return OpenWeights(without_adapter(config), BaseWeights(weights), halves, ranks)


def without_adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` that states no adapter."""
    return {name: 0 if name in RANKS.values() else value for name, value in config.items()}


def settled_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json` as it is of the model that reading the folder gives, its adapter merged.

    Ranks in a `config.json` whose weights hold no adapter stay, and are refused by whoever reads the model.
    """
    stated = any(config.get(name) not in (None, 0, False) for name in RANKS.values())
    return open_weights(folder).config if stated and has_weights(folder) else config


def is_half(name: str) -> bool:
    """Tell whether a tensor of an unmerged folder is the adapter's, by its name."""
    return ".lora_" in name and is_adapter_tensor(name)


def base_name(name: str) -> str:
    """Return the name that a tensor of an unmerged folder has in the base."""
    return name.replace(_WRAP, "", 1).replace(_LAYER, ".", 1)
