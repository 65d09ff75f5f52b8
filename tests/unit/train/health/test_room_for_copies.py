"""The ratio of update to weight is left out where the copies that it needs would fill a machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_v2pe.device import host_memory
from megatron_v2pe.train.health.update_ratios import UpdateRatios


@pytest.mark.parametrize(("free", "is_measured"), [(32, True), (31, False)])
def test_copies_take_half_of_what_is_free_at_most(monkeypatch, caplog, free, is_measured):
    nothing: Any = None
    ratios, asked = UpdateRatios(nothing, nothing, 2), []

    def two_machines(place, need, _free, _group):
        asked.append(need)
        return [("roomy", need, 1 << 40), (place, need, free)]

    monkeypatch.setattr(ratios, "_counted", lambda: iter([(0, torch.ones(4))]))
    monkeypatch.setattr(host_memory, "needed_and_free", two_machines)
    for step in (1, 2, 4):
        ratios.before_update(step)
        assert ratios.is_due(step, False) == (is_measured and step != 1)
    assert asked == [16]  # once, by the first step that is due
    assert ("update_ratio is left out" in caplog.text) != is_measured
