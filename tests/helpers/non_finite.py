"""Models whose logits are no numbers, asked inside a `WorkerPool`: what is said, on every rank."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from helpers import generation
from megatron_v2pe.errors import NonFiniteError
from megatron_v2pe.generate.engine import Engine


def message(
    case: generation.Case, damage: dict[str, float] | None = None, broken_call: int | None = None
) -> str | None:
    """Ask; return the message of the error, None where there are answers.

    Args:
        case: what to ask.
        damage: name of a weight -> what stands in its first element in place of its value.
        broken_call: logits of this call, from 0, are made NaN in their last element: a fault of no weight or layer.
    """
    weights = {name: weight.clone() for name, weight in case.weights.items()}
    for name, value in (damage or {}).items():
        weights[name].view(-1)[0] = value
    calls = [0]
    logits = Engine.logits

    def broken(engine: Any, hidden: Tensor) -> Tensor:
        found = logits(engine, hidden)
        if calls[0] == broken_call:
            found = found.clone()
            found[:, -1] = torch.nan
        calls[0] += 1
        return found

    with mock.patch.object(Engine, "logits", broken):
        try:
            generation.run(generation.replace(case, weights=weights))
        except NonFiniteError as error:
            return str(error)
    return None
