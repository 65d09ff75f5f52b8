"""A data list of every sample kind."""

from __future__ import annotations

import pytest

from helpers.data_cases import Case, every_kind


@pytest.fixture
def case(tmp_path, tokenizer) -> Case:
    return every_kind(tmp_path / "data", tokenizer)
