"""Muon: matrices of decoder and tower layers are changed by their orthogonalised momentum, all else by AdamW.

`train/muon_optimizer.py` is the arithmetic, and builds it. Megatron-Core's own needs a package that is on no index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.train.optimizers.settings import OPTIMIZERS, OptimizerSettings

if TYPE_CHECKING:
    import torch

_Below1 = Annotated[float, Range(0, 1)]


@OPTIMIZERS.register("muon")
@dataclass(frozen=True)
class MuonConfig(OptimizerSettings):
    """Settings of Muon, and of the AdamW beside it."""

    name: str = "muon"
    """Which optimizer; another has settings of its own, which a dry run with its name prints."""
    muon_momentum: _Below1 = 0.95
    """Share of the momentum that stays in a step."""
    muon_nesterov: bool = True
    """Look one step of momentum ahead."""
    muon_iterations: Annotated[int, Range(1, 50)] = 5
    """Newton-Schulz iterations that make a matrix nearly orthogonal."""
    muon_scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Factor of an update of [rows, columns]: `match_rms_adamw`, 0.2 times the root of the larger of the two, so that
    learning rates of AdamW go on to fit; `original`, the root of rows / columns where that is above 1."""
    muon_precision: Literal["bf16", "fp32"] = "bf16"
    """Type in which the iterations are computed."""
    adam_beta1: _Below1 = 0.9
    """Decay of the first moment of AdamW, which changes what is no matrix of a layer."""
    adam_beta2: _Below1 = 0.999
    """Decay of the second moment of AdamW."""
    adam_eps: Annotated[float, Range(1e-30, 1)] = 1e-8
    """Added to the root of the second moment of AdamW."""

    def validate(self) -> None:
        """Check ranges; errors as in `OptimizerSettings.validate`."""
        super().validate()
        for name in ("muon_momentum", "adam_beta1", "adam_beta2"):
            if not getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}, expected 0 or more and below 1")

    def shards_state(self) -> bool:
        """Return that data-parallel ranks cannot share its state: a matrix is orthogonalised as a whole."""
        return False

    def megatron_settings(self) -> dict[str, Any]:
        """Return the fields of the AdamW beside it; Megatron-Core builds that one."""
        betas = {"adam_beta1": self.adam_beta1, "adam_beta2": self.adam_beta2}
        return {"optimizer": "adam", **betas, "adam_eps": self.adam_eps}

    def runs_fused(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether it is the AdamW beside it, which may run as one kernel."""
        import torch

        return type(optimizer) is torch.optim.AdamW

    def build(self, config: Any, model: Any, overrides: dict[Any, Any], groups: Any) -> Any:
        """Build both; arguments as in `OptimizerSettings.build`."""
        from megatron_v2pe.train.muon_optimizer import MuonRule, build_muon

        rule = MuonRule(
            self.muon_momentum, self.muon_nesterov, self.muon_iterations, self.muon_scale, self.muon_precision
        )
        return build_muon(rule, config, model, overrides, groups)
