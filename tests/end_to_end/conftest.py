"""A tiny checkpoint with a tokenizer, and a tiny data set, in the published layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset


@pytest.fixture(scope="session")
def tiny(golden, tmp_path_factory) -> Path:
    """A folder with `hf/` (the reference's tiny checkpoint, 424,000 parameters) and `data/meta.json`."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf")
    write_dataset(folder / "data")
    return folder
