"""AdamW, with master weights and moments on the card or in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.train.optimizers.settings import OPTIMIZERS, OptimizerSettings

if TYPE_CHECKING:
    import torch

_Beta = Annotated[float, Range(0, 1)]


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True)
class AdamWConfig(OptimizerSettings):
    """Settings of AdamW."""

    adam_beta1: _Beta = 0.9
    """Decay of the first moment."""
    adam_beta2: _Beta = 0.999
    """Decay of the second moment."""
    adam_eps: Annotated[float, Range(1e-30, 1)] = 1e-8
    """Added to the root of the second moment."""
    optimizer_cpu_offload: bool = False
    """Keep master weights and moments in host memory and update them there (Megatron-Core's, bf16 on CUDA with the
    distributed optimizer): 12 bytes of a parameter less on the card, a slower step. Not run on a GPU yet."""

    host_state_setting = "optimizer_cpu_offload"

    def validate(self) -> None:
        """Check ranges; errors as in `OptimizerSettings.validate`."""
        super().validate()
        for name in ("adam_beta1", "adam_beta2"):
            if not getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}, expected 0 or more and below 1")

    def megatron_settings(self) -> dict[str, Any]:
        """Return AdamW's fields of Megatron-Core's `OptimizerConfig`.

        With `optimizer_cpu_offload` Megatron-Core's `HybridDeviceOptimizer` keeps masters and moments in pinned memory
        of the host and updates them there with PyTorch's fused AdamW; gradients come and weights go on streams of
        their own.
        """
        offload = self.optimizer_cpu_offload
        return {
            "optimizer": "adam",
            "adam_beta1": self.adam_beta1,
            "adam_beta2": self.adam_beta2,
            "adam_eps": self.adam_eps,
            "optimizer_cpu_offload": offload,
            "optimizer_offload_fraction": 1.0 if offload else 0.0,
            "overlap_cpu_optimizer_d2h_h2d": offload,
        }

    def runs_fused(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether it is PyTorch's own AdamW, which may run as one kernel; the one on the host may not."""
        import torch

        return type(optimizer) is torch.optim.AdamW

    def build(self, config: Any, model: Any, overrides: dict[Any, Any], groups: Any) -> Any:
        """Build AdamW; arguments as in `OptimizerSettings.build`.

        State in host memory needs what Megatron-Core calls the precision-aware optimizer, or a second copy of the
        masters stays on the card. That is set after the configuration's own checks: they ask for the version of a
        Transformer Engine that need not be there.
        """
        if self.optimizer_cpu_offload:
            config.use_precision_aware_optimizer = config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
        return super().build(config, model, overrides, groups)
