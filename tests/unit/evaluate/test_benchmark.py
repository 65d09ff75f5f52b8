"""What is missing is told at once, and before anything is asked."""

from __future__ import annotations

import importlib.util

import pytest

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate import benchmark as benchmark_module
from megatron_v2pe.evaluate.benchmark_names import create


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        benchmark_module, "find_spec", lambda name: None if name in ("rouge", "openpyxl") else real(name)
    )
    with pytest.raises(ConfigError, match=r"needs rouge, openpyxl: .*setup_venv.sh eval.*\[eval\]"):
        benchmark_module.check_all([create("milebench_docvqa"), create("mmbench_dev")], None)


def test_a_benchmark_asks_for_the_packages_it_needs_and_no_others(monkeypatch):
    monkeypatch.setattr(benchmark_module, "find_spec", lambda name: object() if name == "rapidfuzz" else None)
    benchmark_module.check_packages([create("pope"), create("mvbench")])
    for name, package in (("mmmu_val", "pyarrow"), ("videomme", "pyarrow"), ("mmbench_dev", "openpyxl")):
        with pytest.raises(ConfigError, match=f"scoring needs {package}: "):
            benchmark_module.check_packages([create("pope"), create(name)])


def test_data_of_every_benchmark_are_told_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        benchmark_module.check_all([create("pope"), create("seed")], tmp_path)
    assert "pope: data are missing" in str(caught.value) and "seed: data are missing" in str(caught.value)
