"""Attention of single tokens over a long cache: plain form against the reference, Triton's kernels against it.

On the CPU the kernels run in Triton's interpreter (which cannot multiply matrices of bf16: float32 and fp16 here), and
are compiled for two cards; on CUDA they run as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from megatron_v2pe.kernels import choice
from megatron_v2pe.kernels.decode_attention import FLOOR, decode_attention, enter_cache, rotate
from megatron_v2pe.kernels.rotary import apply_rotary
from megatron_v2pe.parallel.attention.block import AttentionBlock, Reference

CUDA = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if CUDA else []
DEVICE = "cuda" if CUDA else "cpu"
# Largest errors over the largest value, over the cases below: float32 3e-7, fp16 2e-4.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]
SHAPES = [(1, 16), (2, 128), (3, 24), (4, 64), (7, 64), (1, 96), (16, 128)]
"""Query heads of a group, width of a head; the last three are those of Qwen2-0.5B, Phi-3 and InternLM3."""
STARTS, LENGTHS, PLACES = [0, 150, 160, 161], [129, 1, 0, 200], 361
BREAK_IS_SEEN_ABOVE = 0.01


def case(heads, width, dtype, groups=2):
    generator = torch.Generator().manual_seed(heads * width)
    query = torch.randn(len(STARTS), groups, heads, width, generator=generator)
    keys, values = (torch.randn(PLACES, groups, width, generator=generator) for _ in range(2))
    places = torch.tensor(STARTS, device=DEVICE), torch.tensor(LENGTHS, device=DEVICE)
    return *(tensor.to(DEVICE, dtype) for tensor in (query, keys, values)), *places


def largest_error(found, expected):
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_the_plain_form_equals_the_reference(heads, width):
    query, keys, values, starts, lengths = case(heads, width, torch.float64)
    output, lse = decode_attention(query, keys, values, starts, lengths, width**-0.5)
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        if length == 0:
            assert not output[row].any() and (lse[row] == FLOOR).all()
            continue
        block = AttentionBlock((1,), (length,), False, width**-0.5)
        mine = slice(start, start + length)
        expected, total = Reference().forward(query[row].flatten(0, 1)[None], keys[mine], values[mine], block)
        assert largest_error(output[row].flatten(0, 1), expected[0]) < 1e-13
        assert largest_error(lse[row].flatten(), total[0]) < 1e-13


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_a_token_enters(heads, width):
    """Its key and value stand behind what was there, and nothing else has changed."""
    _, keys, values, starts, lengths = case(heads, width, torch.float64)
    lengths = lengths - (lengths > 1).to(lengths)
    joint = torch.randn(len(STARTS), 2, heads + 2, width, dtype=torch.float64, device=DEVICE)
    angles = torch.randn(len(STARTS), width // 2, device=DEVICE)
    before = keys.clone(), values.clone()
    query = enter_cache(joint, *factors(angles), keys, values, starts, lengths)
    expected = apply_rotary(joint[:, :, :-1].flatten(1, 2), angles.cos(), angles.sin()).unflatten(1, (2, heads + 1))
    assert largest_error(query, expected[:, :, :-1]) < 1e-6
    places = starts + lengths
    assert largest_error(keys[places], expected[:, :, -1]) < 1e-6 and torch.equal(values[places], joint[:, :, -1])
    others = torch.ones(PLACES, dtype=torch.bool, device=DEVICE)
    others[places] = False
    assert torch.equal(keys[others], before[0][others]) and torch.equal(values[others], before[1][others])


def factors(angles):
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1)[:, None, None], torch.cat([-sin, sin], -1)[:, None, None]


@pytest.fixture
def gpu():
    pytest.importorskip("triton", reason="triton is not installed")
    from megatron_v2pe.kernels.gpu import decode_attention as kernels

    return kernels


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("heads", "width"), SHAPES)
@pytest.mark.parametrize("splits", [1, 3])
def test_the_kernel_equals_the_plain_form(gpu, dtype, heads, width, splits):
    tensors = case(heads, width, dtype)
    with choice.forced("plain"):
        expected, total = decode_attention(*tensors, width**-0.5)
    output, lse = gpu.attend(*tensors, width**-0.5, splits)
    assert output.dtype == dtype and lse.dtype == total.dtype
    assert largest_error(output, expected) <= TOLERANCE[dtype]
    there = total > FLOOR
    assert largest_error(lse[there], total[there]) <= TOLERANCE[dtype] and (lse[~there] == FLOOR).all()


def test_the_kernel_of_a_card_or_of_the_interpreter_is_chosen(gpu):
    tensors = case(2, 64, torch.float32)
    with choice.forced("plain"):
        expected, _ = decode_attention(*tensors, 64**-0.5)
    with choice.forced("triton"):
        output, _ = decode_attention(*tensors, 64**-0.5)
    assert 0 < largest_error(output, expected) <= TOLERANCE[torch.float32]
    assert gpu.most_splits(8, torch.device("cpu")) == 1 and gpu.most_splits(1, torch.device("cpu")) == 8


@pytest.mark.parametrize("change", [-1, 1])
def test_one_key_too_few_or_too_many_is_seen(gpu, change):
    """The planted break: in a split that begins or ends elsewhere, one of 129 keys is one of 0.8 percent."""
    query, keys, values, starts, lengths = case(2, 64, torch.float32)
    with choice.forced("plain"):
        expected, _ = decode_attention(query, keys, values, starts, lengths, 64**-0.5)
    output, _ = gpu.attend(query, keys, values, starts, lengths + change * (lengths == 129).long(), 64**-0.5, 3)
    assert largest_error(output[0], expected[0]) > BREAK_IS_SEEN_ABOVE


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_the_kernel_enters_as_the_plain_form(gpu, dtype, heads, width):
    _, keys, values, starts, lengths = case(heads, width, dtype)
    lengths = lengths - (lengths > 1).to(lengths)
    joint = torch.randn(len(STARTS), 2, heads + 2, width).to(DEVICE, dtype)
    turned = factors(torch.randn(len(STARTS), width // 2, device=DEVICE))
    ours, theirs = (keys.clone(), values.clone()), (keys.clone(), values.clone())
    with choice.forced("plain"):
        expected = enter_cache(joint, *turned, *theirs, starts, lengths)
    query = gpu.enter(joint, *turned, *ours, starts, lengths)
    assert largest_error(query, expected) <= TOLERANCE[dtype]
    assert largest_error(ours[0], theirs[0]) <= TOLERANCE[dtype] and torch.equal(ours[1], theirs[1])
    assert (ours[0] != keys).flatten(1).any(1).sum() == len(STARTS)


def test_rotation_is_that_of_training():
    states, angles = torch.randn(5, 2, 3, 8), torch.randn(5, 4) * 100
    expected = apply_rotary(states.flatten(1, 2), angles.cos(), angles.sin()).unflatten(1, (2, 3))
    assert largest_error(rotate(states, *factors(angles)), expected) < 1e-6


SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from megatron_v2pe.kernels.gpu import decode_attention as gpu

NUMBERS = dict.fromkeys(("groups", "splits"), "i32")
TYPES = {"starts": "*i64", "lengths": "*i64", "partial": "*fp32", "sums": "*fp32", "lse": "*fp32", "same": "*fp32",
         "other": "*fp32", "scale": "fp32", **NUMBERS}
SHAPE = {"HEADS": 2, "WIDTH": 128, "COLUMNS": 128}
compiled = 0
for capability in (80, 90):
    for kernel, constants in (
        (gpu._attend, {**SHAPE, "ROWS": 16, "BLOCK": 64}),
        (gpu._merge, {**SHAPE, "SPLITS": 64}),
        (gpu._enter, {**SHAPE, "ROWS": 4}),
    ):
        types = {**TYPES, **dict.fromkeys(constants, "constexpr")}
        signature = {name: types.get(name, "*bf16") for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        options = {"num_warps": 4, "num_stages": 2}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.asm["ptx"] and made.metadata.shared <= 96 * 1024, made.metadata.shared
        compiled += 1
print(compiled, "compiled")
"""


@pytest.mark.slow
def test_the_kernels_compile(gpu, tmp_path):
    """For an A100 and an H100, and with shared memory that leaves room for two programs on a multiprocessor."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "6 compiled"
