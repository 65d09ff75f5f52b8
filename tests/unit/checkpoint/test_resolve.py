"""Where a run starts from: a run that starts from a run carries on what that one was trained with.

Kind of fault: what a model was trained with is known after one run, and forgotten after two.
"""

from __future__ import annotations

import json

import pytest

from helpers.made_up_runs import make_run
from megatron_v2pe.checkpoint.checksums import sums_of_files
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.store import _check_copies
from megatron_v2pe.checkpoint.trained import start_config
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy


def test_a_run_of_a_run(golden, tmp_path):
    hf_to_mcore(write_checkpoint_copy(golden / "reference_checkpoint", tmp_path / "hf"), tmp_path / "megatron")
    assert start_config(tmp_path / "megatron") == {}
    first = make_run(tmp_path / "megatron", tmp_path / "run", model={"drop_path_rate": 0.5}) / "iter_0000002"
    files = start_config(first)
    assert json.loads(files["hf/config.json"])["vision_config"]["drop_path_rate"] == 0.5

    second = tmp_path / "second"
    (second / "hf").mkdir(parents=True)
    for path in (first / "hf").iterdir():
        (second / "hf" / path.name).write_bytes(path.read_bytes())
    (second / "hf" / "config.json").write_text(files["hf/config.json"])
    _check_copies(sums_of_files(second), first, files)
    with pytest.raises(CheckpointError, match="config.json: damaged since the run began"):
        _check_copies(sums_of_files(second), first, {})
    (second / "hf" / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="tokenizer.model: damaged since the run began"):
        _check_copies(sums_of_files(second), first, files)
