"""Triton compiles every kernel for an H100 without one: what the interpreter lets pass, a compiler may refuse."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from megatron_v2pe.kernels.gpu import gelu, norms, residual, rotary, swiglu, tiles

SUMS = dict.fromkeys(("sums", "plain_sums", "weighted_sums", "inverse", "cos", "sin"), "*fp32")
WHOLE = dict.fromkeys(("rows", "width", "tiles", "pixels", "row_stride", "count", "parts", "half"), "i32")
KNOWN = {**SUMS, **WHOLE, "eps": "fp32"}
KEEP = {"HAS_KEEP": True, "BLOCK": 512}
SEVERAL = {"ROWS": 64, "AT_ONCE": 4, "BLOCK": 512}
ROTARY = {"SLOTS": 16, "HALF": 64}
KERNELS = [
    (swiglu._forward, {"BLOCK": 1024}, {}),
    (swiglu._backward, {"BLOCK": 1024}, {}),
    (gelu._backward, SEVERAL, {}),
    (norms._forward, {"BLOCK": 2048}, {}),
    (norms._backward, {"ROWS": 16, "BLOCK": 2048}, {}),
    (residual._forward, {**KEEP, "HAS_BIAS": True}, {}),
    (residual._backward, {**KEEP, **SEVERAL}, {}),
    (rotary._move, {**ROTARY, "BACKWARD": False}, {}),
    (rotary._move, {**ROTARY, "BACKWARD": True}, {}),
    (rotary._norm_forward, ROTARY, {}),
    (rotary._norm_backward, {**ROTARY, "ROWS": 16}, {}),
    (tiles._normalise, {"BLOCK": 1024}, {"tiles": "*u8"}),
]
for kernel, constants, own in KERNELS:
    types = {**KNOWN, **own, **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "*bf16") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
print(len(KERNELS), "compiled")
"""


@pytest.mark.slow
def test_every_kernel_compiles(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "12 compiled"
