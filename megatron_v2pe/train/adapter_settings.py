"""The section `adapter` of a run's settings: LoRA on linears of the model, whose own weights then stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from megatron_v2pe.base import config_tree
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range

_Rank = Annotated[int, Range(1, 1 << 16)]
PART_RANKS = {"language_model": "llm_rank", "vision_model": "backbone_rank", "vision_projection": "projector_rank"}
"""Part of the model -> the setting of its rank."""


@dataclass(frozen=True)
class AdapterSettings:
    """Low-rank adapters (LoRA): which linears have one, and of which rank."""

    kind: Literal["none", "lora"] = "none"
    """`lora`: train factors of low rank beside linears; of a part of the model that has some, nothing else learns."""
    rank: _Rank = 16
    """Rank of the factors, where a part has none of its own."""
    alpha: Annotated[float, Range(1e-6, 1e6)] | None = None
    """The change is multiplied by `alpha / rank`; unset: twice the rank, as the published script has it."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Share of a linear's input that its factors do not see in training."""
    targets: tuple[str, ...] = ()
    """Linears with an adapter: `attention`, `mlp`, `linear_qkv`, `linear_proj`, `linear_fc1`, `linear_fc2`, or pieces
    `q`, `k`, `v`, `gate`, `up`, each also of one part (`language_model.attention`, `vision_model.`,
    `vision_projection.`); unset: all of the parts whose rank is set, else of the language model."""
    use_rslora: bool = False
    """Multiply by `alpha / sqrt(rank)` (rank-stabilised LoRA)."""
    pieces: Literal["auto", "fused", "split"] = "auto"
    """Pairs of factors a linear has: as the checkpoint's layout divides it (`auto`, needed for PEFT's format), one, or
    one for each of queries, keys, values, gate, up."""
    llm_rank: _Rank | None = None
    """Rank in the language model."""
    backbone_rank: _Rank | None = None
    """Rank in the vision tower."""
    projector_rank: _Rank | None = None
    """Rank in the projector."""
    start: str | None = None
    """An adapter to begin with, in place of a drawn one: a PEFT folder, or a run that trained one on the same base; of
    at most this run's rank. A run that goes on has its own."""

    def validate(self) -> None:
        """Check the values.

        Raises:
            ConfigError: names the setting.
        """
        config_tree.check_values(self, "adapter")
        if not self.is_on:
            for field in fields(self):
                if getattr(self, field.name) != field.default:
                    raise ConfigError(
                        f"adapter.{field.name} is for a run that trains an adapter: set adapter.kind lora, or leave "
                        f"adapter.{field.name} out to train without one"
                    )
        if len(set(self.targets)) < len(self.targets):
            twice = next(target for target in self.targets if self.targets.count(target) > 1)
            raise ConfigError(f"adapter.targets: {twice} stands there twice")

    @property
    def is_on(self) -> bool:
        """Whether there are adapters."""
        return self.kind != "none"

    def chosen_targets(self) -> tuple[str, ...]:
        """Return the targets, with the default in place of none."""
        if self.targets:
            return self.targets
        parts = [part for part, setting in PART_RANKS.items() if getattr(self, setting) is not None]
        return tuple(
            f"{part}.{group}"
            for part in parts or ["language_model"]
            for group in (("mlp",) if part == "vision_projection" else ("attention", "mlp"))
        )

    def rank_of(self, part: str) -> int:
        """Return the rank in a part of the model."""
        return getattr(self, PART_RANKS[part]) or self.rank

    def alpha_of(self, part: str) -> float:
        """Return alpha in a part of the model."""
        return 2.0 * self.rank_of(part) if self.alpha is None else self.alpha
