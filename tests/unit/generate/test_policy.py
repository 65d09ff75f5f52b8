"""The stride a checkpoint is asked with is told, with who chose it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from megatron_v2pe.generate.policy import describe_positions, inference_policy
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.settings import V2PESettings


@pytest.mark.parametrize(
    ("trained", "own", "asked", "told"),
    [
        ("default", None, None, "positions: default, one for every token"),
        ("v2pe_fix", 16, None, "positions: v2pe_fix, stride 16 of {tile} (the checkpoint's own)"),
        ("v2pe_fix", 16, Fraction(1, 2), "positions: v2pe_fix, stride 1/2 of {tile} (asked for)"),
        ("v2pe_rnd", None, 64, "positions: v2pe_fix, stride 64 of {tile} (asked for)"),
        (
            *("v2pe_rnd", None, None),
            "positions: v2pe_fix, stride {usual} of {tile} (chosen: a quarter of a tile's tokens, for v2pe_rnd has "
            "none of its own)",
        ),
    ],
)
def test_positions_are_told_with_who_chose_them(golden, trained, own, asked, told):
    config = InternVLConfig.from_folder(golden / "reference_checkpoint")
    config = replace(config, v2pe=V2PESettings.stated(trained, own))
    line = describe_positions(config, inference_policy(config, asked), asked)
    assert line == told.format(tile=config.tokens_per_tile, usual=max(1, config.tokens_per_tile // 4))
