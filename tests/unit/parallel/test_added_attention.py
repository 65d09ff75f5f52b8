"""A further attention backend and a further exchange of context-parallel ranks, from a folder outside the package."""

from __future__ import annotations

import sys

import pytest
import torch

from helpers.attention import SCALE, random_inputs
from megatron_v2pe.base import plugins
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.parallel.attention.attention_backend import ATTENTION_BACKENDS, check_backend, usable
from megatron_v2pe.parallel.attention.block import AttentionBlock, Reference
from megatron_v2pe.parallel.attention.context_parallel import CONTEXT_PARALLEL, exchange_named
from megatron_v2pe.parallel.attention.kernel_choice import choose_kernel
from megatron_v2pe.parallel.attention.ring import ring_attention
from megatron_v2pe.parallel.config import ModelSizes, ParallelConfig

BACKEND = '''
"""Kernels of the toy backend."""
from megatron_v2pe.parallel.attention.attention_backend import ATTENTION_BACKENDS


class Toy:
    def refusal(self, device):
        return None if device.type == "cpu" else "the toy runs on the CPU only"

    def kernels(self, device, dtype):
        from megatron_v2pe.parallel.attention.block import CpuFlash, Reference

        class Marked(Reference):
            calls = 0

            def forward(self, *arguments):
                Marked.calls += 1
                return super().forward(*arguments)

        class Wrong(Reference):
            def forward(self, query, *arguments):
                return super().forward(query * 1.5, *arguments)

        return [("wrong", Wrong()), ("marked", Marked()), ("flash for the CPU", CpuFlash())]

    def tile_kernels(self):
        return []


ATTENTION_BACKENDS.add("toy", Toy())
'''
EXCHANGE = '''
"""An exchange that gathers nothing."""
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.parallel.attention.context_parallel import CONTEXT_PARALLEL, RingOfBlocks


class Pairs(RingOfBlocks):
    words = "pairs"

    def check(self, ranks, heads, groups, tensor_parallel):
        if ranks > 2:
            raise ConfigError(f"cp_comm_type pairs: context_parallel_size {ranks} is above 2")


CONTEXT_PARALLEL.add("pairs", Pairs())
'''


@pytest.fixture(autouse=True)
def toy_folder(tmp_path, monkeypatch):
    folder = tmp_path / "toy_attention"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A toy."""\n')
    (folder / "attention_backend.py").write_text(BACKEND)
    (folder / "context_parallel.py").write_text(EXCHANGE)
    for registry in (ATTENTION_BACKENDS, CONTEXT_PARALLEL):
        monkeypatch.setattr(registry, "_members", dict(registry._members))
        monkeypatch.setattr(registry, "_loaded", None)
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    for name in ("toy_attention", "toy_attention.attention_backend", "toy_attention.context_parallel"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    plugins._named.cache_clear()


def test_the_setting_takes_the_backend_and_runs_its_first_right_kernel(caplog):
    ParallelConfig(attention_backend="toy").validate()
    cpu = torch.device("cpu")
    assert usable(cpu)[-1] == "toy"
    check_backend("toy", cpu)
    with pytest.raises(ConfigError, match="is toy, but the toy runs on the CPU only"):
        check_backend("toy", torch.device("meta"))
    query, key, value, _ = random_inputs((24,), 4, 2, torch.float64)
    kernel = choose_kernel(query, 2, "toy")
    assert type(kernel).__name__ == "Marked" and type(kernel).calls > 0
    assert "wrong: output of a causal block differs from the reference" in caplog.text
    before = type(kernel).calls
    output, _ = ring_attention(query, key, value, (10, 14), None, SCALE, backend="toy")
    block = AttentionBlock((10, 14), (10, 14), True, SCALE)
    assert torch.equal(output, Reference().forward(query, key, value, block)[0]) and type(kernel).calls == before + 1


def test_the_setting_takes_the_exchange_with_its_own_check():
    sizes = ModelSizes(24, 16, 8, 8192)
    ParallelConfig(context_parallel_size=2, cp_comm_type="pairs").validate(2, sizes)
    with pytest.raises(ConfigError, match="cp_comm_type pairs: context_parallel_size 4 is above 2"):
        ParallelConfig(context_parallel_size=4, cp_comm_type="pairs").validate(4, sizes)
    with pytest.raises(ConfigError, match="cp_comm_type 'halves' is none of p2p, a2a, pairs"):
        exchange_named("halves")
