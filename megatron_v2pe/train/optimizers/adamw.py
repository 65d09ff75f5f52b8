"""AdamW, with master weights and moments on the card or in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.train.optimizers.settings import OPTIMIZERS, OptimizerSettings

if TYPE_CHECKING:
    import torch

_MomentType = Literal["fp32", "bf16", "fp16", "fp8"]
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
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

    use_precision_aware_optimizer: bool = False
    """Keep master weights as what bf16 weights leave out, and moments in the types below (Megatron-Core's, by
    Transformer Engine's FusedAdam; bf16 on CUDA with the distributed optimizer). Not run here."""
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    """With `use_precision_aware_optimizer`: type of master weights; `fp32` takes 2 bytes beside the bf16 weight."""
    exp_avg_dtype: _MomentType = "fp32"
    """With `use_precision_aware_optimizer`: type of the first moment."""
    exp_avg_sq_dtype: _MomentType = "fp32"
    """With `use_precision_aware_optimizer`: type of the second moment."""

    host_state_setting = "optimizer_cpu_offload"

    def validate(self) -> None:
        """Check ranges; errors as in `OptimizerSettings.validate`."""
        super().validate()
        for name in ("adam_beta1", "adam_beta2"):
            if not getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}, expected 0 or more and below 1")
        self._check_state()

    def _check_state(self) -> None:
        """Refuse where and how state is kept if the settings do not go together."""
        for name in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
            if getattr(self, name) != "fp32" and not self.use_precision_aware_optimizer:
                raise ConfigError(
                    f"optimizer.{name} is {getattr(self, name)}, which is for the precision-aware state: set "
                    "optimizer.use_precision_aware_optimizer, or leave fp32"
                )
        if self.use_precision_aware_optimizer:
            for name in ("optimizer_cpu_offload", "ema_decay"):
                if getattr(self, name):
                    raise ConfigError(
                        f"optimizer.use_precision_aware_optimizer and optimizer.{name} are both set: one of them has "
                        "no master weights in float32 on the card, and the other needs them"
                    )

    @property
    def precision_aware_setting(self) -> str | None:
        """Name of the switch of the precision-aware state where it is on."""
        return "use_precision_aware_optimizer" if self.use_precision_aware_optimizer else None

    def state_bytes_per_parameter(self, itemsize: int) -> int:
        """Return the bytes of state of a parameter; arguments as in `OptimizerSettings.state_bytes_per_parameter`."""
        if not self.use_precision_aware_optimizer:
            return super().state_bytes_per_parameter(itemsize)
        return 2 + _BYTES[self.exp_avg_dtype] + _BYTES[self.exp_avg_sq_dtype]

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
            **self._precision_aware(),
        }

    def _precision_aware(self) -> dict[str, Any]:
        if not self.use_precision_aware_optimizer:
            return {}
        import torch

        types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}
        return {
            "use_precision_aware_optimizer": True,
            "store_param_remainders": self.main_params_dtype == "fp32",
            "main_params_dtype": types[self.main_params_dtype],
            "exp_avg_dtype": types[self.exp_avg_dtype],
            "exp_avg_sq_dtype": types[self.exp_avg_sq_dtype],
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
