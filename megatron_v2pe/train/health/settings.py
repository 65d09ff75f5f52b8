"""Settings of what a run watches of itself, `--health.*`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_v2pe.base import config_tree
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range

_Steps = Annotated[int, Range(1, 10**9)]
_STEPS = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?")


@dataclass(frozen=True)
class HealthConfig:
    """What a run watches of itself, how often, and what it does where something is wrong."""

    interval: _Steps | None = 100
    """Steps between measurements of each part's weights and their change by a step, and of the time of each rank;
    unset: never. Norms of gradients come with every step."""
    attention_interval: _Steps | None = None
    """Steps between measurements of the largest attention logit of every layer, over one pack; unset: never. It costs
    about a forward pass of attention without its fast kernels."""
    divergence_interval: _Steps | None = 1000
    """Steps between comparisons of what ranks must hold alike; unset: never."""
    divergence: Literal["stop", "warn"] = "stop"
    """What is done where ranks hold something else: the run ends with an error, or says so and goes on."""
    max_skipped_steps: Annotated[int, Range(0, 10**6)] = 10
    """Steps that may be skipped in all because their loss or gradients are not finite; one more ends the run."""
    max_skipped_in_a_row: Annotated[int, Range(0, 10**6)] = 3
    """Steps that may be skipped one after the other; one more ends the run. 0: the first ends it."""
    window: Annotated[int, Range(2, 10**5)] = 100
    """Steps over which spikes of the loss and the share of clipped steps are judged."""
    spike_factor: Annotated[float, Range(1, 10**6)] | None = 8.0
    """A loss is a spike where it is so many standard deviations, estimated by the median, above the median of the
    window; unset: spikes are not looked for."""
    profile_steps: str = ""
    """Steps to be profiled, from 1, such as `3:5` or `4`; empty: none."""
    profile_ranks: tuple[int, ...] = (0,)
    """Ranks that write a profile."""

    def validate(self) -> None:
        """Check ranges, and that the steps to be profiled can be read.

        Raises:
            ConfigError: names the setting.
        """
        config_tree.check_values(self, "health")
        self.profiled()
        if wrong := [rank for rank in self.profile_ranks if rank < 0]:
            raise ConfigError(f"health.profile_ranks names rank {wrong[0]}, expected 0 or more")

    def profiled(self) -> tuple[int, int] | None:
        """Return the first and the last step to be profiled, from 1; None for none.

        Raises:
            ConfigError: `profile_steps` is neither a step nor two with a colon between them.
        """
        if not self.profile_steps:
            return None
        found = _STEPS.fullmatch(self.profile_steps)
        first = int(found[1]) if found else 0
        last = int(found[2] or found[1]) if found else 0
        if not 1 <= first <= last:
            raise ConfigError(
                f"health.profile_steps is {self.profile_steps!r}, expected a step from 1 on such as 4, or a first and "
                "a last one such as 3:5"
            )
        return first, last
