"""The largest attention logit of every layer of the language model, over the first pack of every copy of the model.

A few layers whose logits grow without end are how attention goes wrong first. Measured now and then
(`health.attention_interval`), exactly (`parallel/attention/largest_logit.py`), in the step's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn

from megatron_v2pe.parallel.attention.core import FlashCoreAttention, TransformerEngineCoreAttention
from megatron_v2pe.parallel.attention.largest_logit import largest_logit
from megatron_v2pe.parallel.packed_sequence import PackedSequence

NAME = "health/attention_logits_max"


class AttentionLogits:
    """Watches the attention of a model in some of its steps."""

    def __init__(self, model: nn.Module, layers: int, interval: int | None) -> None:
        """Find what attends over packs.

        Args:
            model: this rank's stage, unwrapped.
            layers: of the whole language model.
            interval: steps between two measurements; None: never.
        """
        kinds = FlashCoreAttention, TransformerEngineCoreAttention
        found = [module for module in model.modules() if isinstance(module, kinds)]
        self._cores = [core for core in found if core.attn_mask_type == AttnMaskType.causal]
        self._device = next(model.parameters()).device
        self._layers, self._interval = layers, interval
        self._found: dict[int, Tensor] = {}

    def begin(self, step: int) -> bool:
        """Watch from now on, if it is this step's turn, a number from 1; return whether it is."""
        is_due = self._interval is not None and step % self._interval == 0
        for core in self._cores if is_due else ():
            core.watch = self._take
        return is_due

    def end(self) -> Tensor:
        """Watch no more; return each layer's largest logit, float64 [layers] on the device; every rank calls this."""
        largest = torch.full((self._layers,), -torch.inf, dtype=torch.float64, device=self._device)
        for core in self._cores:
            core.watch = None
        for layer, logit in self._found.items():
            largest[layer - 1] = logit.to(torch.float64)
        self._found.clear()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest

    def _take(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        pack: PackedSequence,
        scale: float,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Measure a layer in the first pack that it sees; not again where it is recomputed."""
        assert pack.layout is not None
        if layer not in self._found:
            self._found[layer] = largest_logit(query.detach(), key.detach(), pack.layout, scale, group)


def named(largest: Sequence[float]) -> dict[str, float]:
    """Return what a row has of the largest logits of all layers, in order."""
    return {NAME: max(largest)} | {f"{NAME}/layer_{number}": one for number, one in enumerate(largest, 1)}
