"""The names that stand in `target_modules`: PEFT finds exactly the modules that have an adapter by them.

The kind of fault: `1` for `mlp1.1`, the projector's first linear, by which PEFT also finds every layer 1.
"""

from __future__ import annotations

import json

import pytest
import torch

from helpers.native_models import small_config
from megatron_v2pe.checkpoint.low_rank.adapter import WEIGHT, Adapter
from megatron_v2pe.checkpoint.low_rank.change import LowRankChange
from megatron_v2pe.checkpoint.low_rank.module_names import module_table
from megatron_v2pe.checkpoint.low_rank.peft_folder import write_peft
from megatron_v2pe.models.config import InternVLConfig

PARTS = {"original": ("vision_model.", "mlp1.", "language_model."), "native": ("vision", "multi_modal", "language")}


def modules_of(tensors):
    """Every module that PEFT goes through, with those that hold others."""
    for name in tensors:
        parts = name.split(".")[:-1]
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


@pytest.mark.parametrize("layout", PARTS)
@pytest.mark.parametrize("part", range(3))
def test_the_written_targets_mean_exactly_the_adapted_modules(tmp_path, layout, part):
    model = InternVLConfig.from_hf(small_config("qwen2"))
    table = module_table(model, layout)
    linears = [row for row in table.tensors if len(row.shape) == 2 and PARTS[layout][part] in row.name]
    chosen = {row.name: row.shape for row in linears if row.name.endswith(WEIGHT) and not row.may_be_padded}
    changes = {name: LowRankChange(torch.ones(2, k), torch.ones(n, 2), 4.0) for name, (n, k) in chosen.items()}
    write_peft(Adapter("made up", table, changes), model, tmp_path / "peft", layout)
    targets = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["target_modules"]
    found = {  # as PEFT looks for them
        module
        for module in modules_of(row.name for row in table.tensors)
        if module in targets or any(module.endswith(f".{target}") for target in targets)
    }
    assert found == {name.removesuffix(WEIGHT) for name in chosen} and found
