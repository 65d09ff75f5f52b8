"""A small tokenizer for what is broken on purpose."""

from __future__ import annotations

import pytest

from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
