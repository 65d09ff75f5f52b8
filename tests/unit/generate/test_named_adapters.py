"""What adapters have in place of the base's: each choice gives the tables that the chosen one alone would give."""

from __future__ import annotations

import torch

from megatron_v2pe.checkpoint.hf.table import TABLES
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows
from megatron_v2pe.checkpoint.parts import HeldPart
from megatron_v2pe.generate.named_adapters import NamedAdapters


def test_rows_of_one_adapter_and_a_whole_table_of_another():
    """The base has four rows, a new token of adapter `rows`, and a row of padding."""
    table = torch.tensor([1.0, 1, 1, 1, 1, 0])[:, None].repeat(1, 2)
    named = object.__new__(NamedAdapters)
    named.names, named.chosen, named._on, named._whole, named._rows = ("whole", "rows"), None, [], {}, {}
    part = HeldPart(TABLES[0], table, (0, 0))
    named._keep("whole", torch.full((4, 2), 7.0), [part])
    named._keep_rows("rows", TokenRows("rows", (2, 4), {TABLES[0]: torch.full((2, 2), 9.0)}), TABLES[0], [part])
    expected = {"none": [1, 1, 1, 1, 1, 0], "whole": [7, 7, 7, 7, 1, 0], "rows": [1, 1, 9, 1, 9, 0]}
    for name in ("rows", "whole", "rows", "none", "whole", "none"):
        named.choose(name)
        assert table[:, 0].tolist() == expected[name], name
