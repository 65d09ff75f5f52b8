"""A small tokenizer and a small data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.workshop.synthetic.small_data import write_dataset, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def meta(tmp_path) -> Path:
    return write_dataset(tmp_path / "data")
