"""Without CUDA Megatron-Core starts without a compiler; with it, as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_v2pe.device import jit_on_cpu

PRINT = "print('torch._inductor.compile_fx' in sys.modules, megatron.core.jit.jit_fuser(len) is len)"
IMPORT = "import sys, megatron_v2pe, megatron.core, megatron.core.jit"


def printed(program: str) -> str:
    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout.strip()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_no_compiler_is_imported():
    assert printed(f"{IMPORT}; {PRINT}") == "False True"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_what_compiles_at_import_is_the_module_it_was_and_the_compiler_is_back():
    look = (
        "import inspect, torch; before = torch.compile; import megatron.core.transformer.moe.router as router; "
        "print(torch.compile is before, 'class TopKRouter' in inspect.getsource(router))"
    )
    assert printed(f"{IMPORT}; {look}") == "True True"


def test_with_cuda_the_original_is_imported():
    pretend = "import torch; torch.cuda.is_available = lambda: True"
    assert printed(f"{pretend}; {IMPORT}; print(megatron.core.jit.__file__.endswith('jit.py'))") == "True"


def test_it_is_installed_once():
    before = list(sys.meta_path)
    jit_on_cpu.install()
    assert sys.meta_path == before
