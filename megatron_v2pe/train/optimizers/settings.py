"""What all optimizers have in common: learning rates, weight decay, clipping; how one is added, and a schedule.

An optimizer is a frozen dataclass that derives from `OptimizerSettings` and adds settings of its own:

    @OPTIMIZERS.register("muon")
    @dataclass(frozen=True)
    class Muon(OptimizerSettings):
        name: str = "muon"
        momentum: Annotated[float, Range(0, 1)] = 0.95

        def megatron_settings(self) -> dict[str, Any]: ...

        def build(self, config, model, overrides, groups) -> MegatronOptimizer: ...  # unless it is Megatron-Core's Adam

`optimizer.name` chooses one: `--optimizer.name muon --optimizer.momentum 0.9`. Its file lies in this folder, or is the
`optimizer.py` of a plug-in (`base/plugins.py`). A schedule is a function, see `SCHEDULES`; its file lies in this folder
too, or is the `schedule.py` of a plug-in. The published flag `--lr_scheduler_type` is translated to
`optimizer.lr_decay_style` in `train/published_table.py`, which knows the published names alone.

`adamw.py` is one to learn from, `parts.py` says which rate and decay a parameter has, `train/optimizer_step.py` builds
what is chosen here and takes the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from megatron_v2pe.base import config_tree
from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range

if TYPE_CHECKING:
    import torch
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig
    from megatron.core.process_groups_config import ProcessGroupCollection

OPTIMIZERS: Registry[type[OptimizerSettings]] = Registry(
    "optimizer", "megatron_v2pe.train.optimizers", "optimizer", one_file_each=True
)
"""Optimizers by the name that `optimizer.name` takes."""

_PartRate = Annotated[float, Range(1e-30, 10)] | None
_PartDecay = Annotated[float, Range(0, 100)] | None
Schedule = Callable[["OptimizerSettings", int], Mapping[str, Any]]
"""Takes the settings and the steps of the run; returns the arguments of Megatron-Core's `OptimizerParamScheduler` that
are this schedule's own: `lr_decay_style`, and what that style needs."""
SCHEDULES: Registry[Schedule] = Registry(
    "learning-rate schedule", "megatron_v2pe.train.optimizers", "schedule", one_file_each=True
)
"""Learning-rate schedules by the name that `optimizer.lr_decay_style` takes."""


@dataclass(frozen=True)
class OptimizerSettings(config_tree.Variant):
    """Settings of every optimizer: which one, its learning rate over the run, weight decay, clipping."""

    name: Annotated[str, config_tree.OneOf(OPTIMIZERS.names)] = "adamw"
    """Which optimizer; another has settings of its own, which a dry run with its name prints."""
    lr: Annotated[float, Range(1e-30, 10)] = 5e-6
    """Highest learning rate, reached after warm-up."""
    min_lr: Annotated[float, Range(0, 10)] = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Annotated[str, config_tree.OneOf(SCHEDULES.names)] = "cosine"
    """Shape of the decay from the end of warm-up to the last step."""
    warmup_ratio: Annotated[float, Range(0, 1)] = 0.03
    """Share of the steps with a linearly rising learning rate, rounded up to whole steps."""
    warmup_steps: Annotated[int, Range(0, 10**9)] | None = None
    """Steps with a linearly rising learning rate, in place of `warmup_ratio`."""
    wsd_decay_ratio: Annotated[float, Range(0, 1)] | None = None
    """With `lr_decay_style wsd`: share of the steps, the last ones, in which the rate falls; unset: 0.1."""
    wsd_decay_steps: Annotated[int, Range(1, 10**9)] | None = None
    """With `lr_decay_style wsd`: steps in which the rate falls, in place of `wsd_decay_ratio`."""
    wsd_decay_style: Literal["cosine", "linear", "minus_sqrt", "exponential"] = "cosine"
    """With `lr_decay_style wsd`: shape of the fall; `minus_sqrt` is 1 minus the root of the share that is over."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.05
    """Decoupled weight decay."""
    weight_decay_on_all: bool = True
    """Decay every trainable tensor, as the published runs did; off: not norms, biases and layer scales."""
    clip_grad: Annotated[float, Range(0, 10**6)] = 1.0
    """Largest global gradient norm; 0: no clipping."""
    vision_lr: _PartRate = None
    """Highest learning rate of the vision tower; unset, here and below: `lr`. The schedule is the run's in every part,
    and `min_lr` is in proportion."""
    vision_lr_decay: Annotated[float, Range(1e-6, 1)] | None = None
    """The rate of each tower layer is this times that of the layer behind it, as the published `--use_custom_trainer`
    has it: of n layers, number i from 0 gets the power n - i, patch and position embeddings n + 1."""
    projector_lr: _PartRate = None
    """Highest learning rate of the projector."""
    language_lr: _PartRate = None
    """Highest learning rate of the language model's layers."""
    embedding_lr: _PartRate = None
    """Highest learning rate of the word embedding and the head."""
    adapter_lr: _PartRate = None
    """Highest learning rate of adapters, in whatever part they are."""
    adapter_b_lr_ratio: Annotated[float, Range(1e-6, 1e6)] | None = None
    """What the rate of the second matrix of an adapter (B) is multiplied by, as LoRA+ does; unset: 1."""
    vision_weight_decay: _PartDecay = None
    """Weight decay of the vision tower; unset, here and below: `weight_decay`."""
    projector_weight_decay: _PartDecay = None
    """Weight decay of the projector."""
    language_weight_decay: _PartDecay = None
    """Weight decay of the language model's layers."""
    embedding_weight_decay: _PartDecay = None
    """Weight decay of the word embedding and the head."""
    adapter_weight_decay: _PartDecay = None
    """Weight decay of adapters."""

    ema_decay: Annotated[float, Range(0, 1)] | None = None
    """Keep a moving average of the weights that learn (EMA), of which this share stays in each step: 0.9999; 4 bytes of
    a parameter more. Checkpoints hold it, `tools/convert_checkpoint.py mcore-to-hf --weights ema` exports it."""

    @classmethod
    def variants(cls) -> Mapping[str, type[OptimizerSettings]]:
        """Return every optimizer's settings by name."""
        return {name: OPTIMIZERS.get(name) for name in OPTIMIZERS.names()}

    host_state_setting: ClassVar[str | None] = None
    """Name of the switch that moves master weights and moments to host memory; None: this optimizer cannot."""

    def state_bytes_per_parameter(self, itemsize: int) -> int:
        """Return the bytes of state a parameter that learns takes, for the estimate of memory (`train/memory.py`).

        By default two moments in float32, and a float32 master weight where the parameter itself is narrower.

        Args:
            itemsize: bytes of the parameter itself, 2 in bf16 and 4 in float32.
        """
        return 12 if itemsize < 4 else 8

    @property
    def average_bytes(self) -> int:
        """Bytes of the moving average of weights for each parameter that learns; shared out as the state is."""
        return 0 if self.ema_decay is None else 4

    def shards_state(self) -> bool:
        """Return whether data-parallel ranks can share its state (`parallel.use_distributed_optimizer`).

        Megatron-Core shards Adam's alone; an optimizer with a `build` of its own may know more.
        """
        return self.megatron_settings()["optimizer"] == "adam"

    def runs_fused(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether what `build` has made may run as one kernel on a GPU (PyTorch's `fused`); by default not.

        Args:
            optimizer: PyTorch's optimizer inside of Megatron-Core's.
        """
        return False

    @property
    def precision_aware_setting(self) -> str | None:
        """Name of the switch that has Transformer Engine's FusedAdam keep state in few bytes, None where it is off."""
        return None

    @property
    def keeps_state_on_host(self) -> bool:
        """Whether master weights and moments lie in host memory, not on the card."""
        return self.host_state_setting is not None and getattr(self, self.host_state_setting)

    def validate(self) -> None:
        """Check ranges, and that the lowest learning rate is not above the highest.

        Raises:
            ConfigError: names the setting.
        """
        config_tree.check_values(self, "optimizer")
        if type(self) is not OPTIMIZERS.get(self.name):
            raise ConfigError(f"optimizer.name is {self.name!r}, but these are settings of {type(self).__name__}")
        if type(self).build is OptimizerSettings.build and self.megatron_settings()["optimizer"] != "adam":
            raise ConfigError(
                f"optimizer.name is {self.name}: of what Megatron-Core builds by itself it restores Adam's state "
                f"alone, so that a run could not be resumed; give {type(self).__name__} a `build` of its own"
            )
        if not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"optimizer.min_lr is {self.min_lr}, expected between 0 and lr {self.lr}")
        if self.ema_decay is not None and self.keeps_state_on_host:
            raise ConfigError(
                f"optimizer.ema_decay averages master weights on the card, and optimizer.{self.host_state_setting} has "
                "them on the host: unset one of them"
            )
        self._check_lengths()

    def _check_lengths(self) -> None:
        """Refuse a length that is given twice, and one that does not count."""
        if self.warmup_steps is not None and self.warmup_ratio not in (0, OptimizerSettings.warmup_ratio):
            raise ConfigError(
                f"optimizer.warmup_steps is {self.warmup_steps} and optimizer.warmup_ratio {self.warmup_ratio}: give "
                "one of them, --optimizer.warmup-ratio 0 has the steps count"
            )
        if self.wsd_decay_steps is not None and self.wsd_decay_ratio is not None:
            raise ConfigError(
                f"optimizer.wsd_decay_steps is {self.wsd_decay_steps} and optimizer.wsd_decay_ratio "
                f"{self.wsd_decay_ratio}: give one of them"
            )
        for name in ("wsd_decay_steps", "wsd_decay_ratio"):
            if getattr(self, name) is not None and self.lr_decay_style != "wsd":
                raise ConfigError(
                    f"optimizer.{name} is {getattr(self, name)}, but optimizer.lr_decay_style is "
                    f"{self.lr_decay_style}, which has no such phase: set it to wsd"
                )

    def steps_of_warmup(self, train_steps: int) -> int:
        """Return the steps of warm-up in a run of `train_steps`: those stated, or the ratio, rounded up."""
        return rounded_up(self.warmup_steps, self.warmup_ratio, train_steps)

    def megatron_settings(self) -> dict[str, Any]:
        """Return the fields of Megatron-Core's `OptimizerConfig` that are this optimizer's own, `optimizer` first."""
        raise NotImplementedError

    def build(
        self,
        config: OptimizerConfig,
        model: DistributedDataParallel,
        overrides: dict[Any, Any],
        groups: ProcessGroupCollection,
    ) -> MegatronOptimizer:
        """Build the optimizer; one that Megatron-Core builds with a function of its own has another `build`.

        Args:
            config: Megatron-Core's settings, with those of `megatron_settings`.
            model: this rank's wrapped stage.
            overrides: weight decay of some parameters, as Megatron-Core takes it.
            groups: process groups.
        """
        from megatron.core.optimizer import get_megatron_optimizer

        return get_megatron_optimizer(config, [model], overrides, use_gloo_process_groups=False, pg_collection=groups)


def rounded_up(steps: int | None, ratio: float, train_steps: int) -> int:
    """Return the steps that a number of steps, or in its absence a share of a run rounded up, makes."""
    # 0.03 * 20000 must be 600, not 601 for a product that comes out a hair above.
    return steps if steps is not None else math.ceil(round(ratio * train_steps, 6))
