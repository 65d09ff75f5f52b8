"""What needs more memory than there is, is refused with both numbers; what runs out is known in all its words."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_v2pe.device import host_memory
from megatron_v2pe.errors import MemoryShortageError
from megatron_v2pe.generate.kv_cache import KVCache, cache_bytes
from megatron_v2pe.generate.memory import Need, demand, free_bytes, is_out_of_memory, shortage_as_error

ALONE = SimpleNamespace(size=lambda: 1)
CPU = torch.device("cpu")
NEED = Need(
    cache_bytes=1000,
    tokens=10,
    step_tokens=4,
    tiles=0,
    tokens_per_tile=256,
    hidden_size=8,
    head_dim=2,
    widest=32,
    itemsize=4,
)


def test_what_does_not_fit_is_refused():
    demand(2 << 30, CPU, ALONE, free=2 << 30)
    with pytest.raises(MemoryShortageError, match=r"needs at least 3.00 GiB on \S+, 2.00 GiB are free"):
        demand(3 << 30, CPU, ALONE, free=2 << 30)
    demand(1, CPU, ALONE)
    with pytest.raises(MemoryShortageError, match="out of memory"):
        demand(1 << 60, CPU, ALONE)


def test_what_is_needed():
    assert NEED.num_bytes == 1000 + 10 * 8 * 4 + 2 * 10 * 2 * 4 + 4 * 32 * 4
    assert replace(NEED, tiles=1).num_bytes == 1000 + 10 * 8 * 4 + 2 * 256 * 8 * 4


def test_the_cache_takes_what_was_said():
    shape = 3, 2, 16, torch.float32
    assert cache_bytes([1, 300, 513], *shape) == KVCache([1, 300, 513], *shape, CPU).num_bytes


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    assert 0 < free_bytes(CPU) < 1 << 50
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=123456))
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    assert free_bytes(CPU) == 123456
    for name, text in {
        "memory.max": "5000",
        "memory.current": "4000",
        "memory.stat": "anon 3\ninactive_file 7",
    }.items():
        (tmp_path / name).write_text(text + "\n")
    assert free_bytes(CPU) == 1007
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU) == 123456


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("connection closed by peer"), False),
    ],
)
def test_words_for_no_memory(error, expected):
    assert is_out_of_memory(error) == expected
    with pytest.raises(MemoryShortageError if expected else RuntimeError), shortage_as_error():
        raise error
