"""Every Triton kernel gives what its plain form gives, forward and backward, and a planted mistake is seen.

The plain form in float64 is the reference. On the CPU kernels run in Triton's interpreter, which cuts bf16 off where a
card rounds to nearest (largest error 2^-7 of a value in place of 2^-8); on CUDA they run as they are.
"""

from __future__ import annotations

import ast
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.kernels import choice, gelu, norms, residual, rotary, swiglu, tiles

triton = pytest.importorskip("triton", reason="triton is not installed")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Largest errors relative to the largest value, over the cases below: float32 2e-7, bf16 6.7e-3.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
BREAK_IS_SEEN_ABOVE = 0.05


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without CUDA")
    return torch.device(request.param)


@pytest.fixture(params=TOLERANCE, ids=str)
def numbers(request, device):
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator).to(device, request.param)


def errors(operation, *arguments):
    """Per result, the largest difference between kernel and float64 plain form over the largest value."""
    with choice.forced("triton"):
        found = operation(*arguments)
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    with choice.forced("plain"):
        expected = operation(*wide)
    assert len(found) == len(expected)
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)]


def with_gradients(function, inputs, *constants):
    """Make `function(*inputs, *constants)` an operation of its inputs and of its results' gradients."""

    def operation(*arguments):
        leaves = [a.detach().clone().requires_grad_() for a in arguments[:inputs]]
        results = function(*leaves, *constants)
        results = results if isinstance(results, tuple) else (results,)
        gradients = torch.autograd.grad(results, leaves, arguments[inputs:])
        return (*(result.detach() for result in results), *gradients)

    return operation


HEADS = [(3, 2, 40), (1, 1, 8), (2, 7, 64), (4, 1, 96)]
"""Groups, queries of each, width of a head: two made up, those of Qwen2-0.5B, and four of the 32 of Phi-3."""
WIDTHS = [300, 1100]
"""Neither a power of two, nor a multiple of a program's columns, one below and one above those."""


def close(numbers, found):
    tolerance = TOLERANCE[numbers(1).dtype]
    assert max(found) <= tolerance, found


@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu(numbers, width):
    joint, gradient = numbers(7, 3, 2 * width), numbers(7, 3, width)
    close(numbers, errors(with_gradients(swiglu.swiglu, 1), joint, gradient))
    close(numbers, errors(swiglu.swiglu_backward, gradient.flatten(0, 1), joint.flatten(0, 1)))


@pytest.mark.parametrize("width", WIDTHS)
def test_gelu(numbers, width):
    close(numbers, errors(gelu.gelu_backward, numbers(131, width), numbers(131, width)))


@pytest.mark.parametrize("width", WIDTHS)
def test_norm_after_an_addition(numbers, width):
    operation = with_gradients(lambda *inputs: norms.add_rms_norm(*inputs, 1e-5), 3)
    shape = (19, 1, width)
    leaves = numbers(*shape), numbers(*shape), numbers(width)
    close(numbers, errors(operation, *leaves, numbers(*shape), numbers(*shape)))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_keep", [True, False])
def test_scaled_residual(numbers, with_bias, with_keep):
    keep = numbers(5).sign().clamp(min=0) * 1.25 if with_keep else None
    shape, width = (14, 5, 600), 600
    leaves = [numbers(*shape), numbers(*shape), numbers(width), *([numbers(width)] if with_bias else [])]

    def add(hidden, update, scale, bias=None):
        factors = None if keep is None else keep.to(hidden.dtype)
        return residual.scaled_residual(hidden, update, bias, scale, factors)

    close(numbers, errors(with_gradients(add, len(leaves)), *leaves, numbers(*shape)))


def test_the_residual_is_the_formula(numbers):
    hidden, update, keep = numbers(4, 3, 8).double(), numbers(4, 3, 8).double(), numbers(3).double()
    bias, scale = numbers(8).double(), numbers(8).double()
    leaves = [tensor.requires_grad_() for tensor in (hidden, update, bias, scale)]
    found = residual.scaled_residual(*leaves, keep)
    expected = hidden + (update + bias) * scale * keep[:, None]
    assert torch.allclose(found, expected, rtol=1e-14, atol=1e-14)
    gradient = numbers(4, 3, 8).double()
    pairs = zip(*(torch.autograd.grad(result, leaves, gradient) for result in (found, expected)), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in pairs)


@pytest.mark.parametrize(("groups", "queries", "width"), HEADS)
def test_rotary(numbers, groups, queries, width):
    angles = numbers(9, width // 2).float()
    cos, sin = angles.cos(), angles.sin()
    joint = numbers(9, 1, groups * (queries + 2) * width)[:, 0].view(9, groups, queries + 2, width)
    gradients = numbers(9, groups * queries, width), numbers(9, groups, width), numbers(9, groups, width)
    close(numbers, errors(with_gradients(rotary.split_and_rotate, 1, cos, sin), joint, *gradients))
    query, key, value = rotary.split_and_rotate(joint, cos, sin)
    # On CUDA the kernel forms `a * cos - b * sin` with one rounding in float32, PyTorch with two.
    same = torch.equal if joint.device.type == "cpu" else partial(torch.allclose, rtol=0, atol=2e-6)
    assert same(query, rotary.apply_rotary(joint[:, :, :-2].flatten(1, 2), cos, sin))
    assert same(key, rotary.apply_rotary(joint[:, :, -2], cos, sin))
    assert torch.equal(value, joint[:, :, -1])
    assert all(part.is_contiguous() for part in (query, key, value))


def normed_by_hand(joint, query_weight, key_weight, cos, sin):
    """The formula, by PyTorch's operations."""
    width = joint.shape[-1]
    query = F.rms_norm(joint[:, :, :-2], (width,), query_weight, 1e-5).flatten(1, 2)
    key = F.rms_norm(joint[:, :, -2], (width,), key_weight, 1e-5)

    def turned(states):
        first, second = states.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    cos, sin = cos[:, None], sin[:, None]
    return turned(query), turned(key), joint[:, :, -1]


@pytest.mark.parametrize(("groups", "queries", "width"), HEADS)
def test_rotary_behind_norms(numbers, groups, queries, width, monkeypatch):
    """37 tokens are more than two programs of the gradient's kernel."""
    angles = numbers(37, width // 2).float()
    cos, sin = angles.cos(), angles.sin()

    def operation(joint, query_weight, key_weight):
        return rotary.split_norm_and_rotate(joint, query_weight, key_weight, 1e-5, cos, sin)

    joint = numbers(37, 1, groups * (queries + 2) * width)[:, 0].view(37, groups, queries + 2, width)
    gradients = numbers(37, groups * queries, width), numbers(37, groups, width), numbers(37, groups, width)
    inputs = (joint, numbers(width), numbers(width), *gradients)
    close(numbers, errors(with_gradients(operation, 3), *inputs))
    wide = [tensor.double() for tensor in inputs]
    found = with_gradients(operation, 3)(*wide)
    expected = with_gradients(lambda *leaves: normed_by_hand(*leaves, cos.double(), sin.double()), 3)(*wide)
    for one, other in zip(found, expected, strict=True):  # float32 angles: the same in both, exactly
        assert (one - other).abs().max() <= 1e-13 * other.abs().max()
    assert all(part.is_contiguous() for part in operation(*inputs[:3]))
    monkeypatch.setattr(rotary, "_ROWS", 10)  # the plain form goes through tokens in parts
    with choice.forced("plain"):
        narrow = with_gradients(operation, 3)(*inputs)
    for part, other in zip(narrow, expected, strict=True):
        assert part.dtype == joint.dtype
        assert (part.double() - other).abs().max() <= TOLERANCE[part.dtype] * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles(device, dtype):
    """Bit for bit what the CPU gives: the kernel looks results up. PyTorch on CUDA divides with another last bit."""
    pixels = torch.randint(0, 256, (2, 40, 41, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    results = []
    for form, place in (("plain", "cpu"), ("triton", device)):
        with choice.forced(form):
            found = tiles.normalise_tiles(pixels.to(place), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), dtype)
            results.append(found.cpu())
    assert results[0].dtype == dtype and results[0].shape == (2, 3, 40, 41)
    assert torch.equal(*results)


def test_triton_is_imported_by_kernels_alone_and_they_when_they_run():
    """Not where a module is imported: that would cost every start on a machine without CUDA."""
    package = Path(choice.__file__).parents[1]
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = ast.walk(tree) if path.parent.name != "gpu" else ()
        names = [(alias.name, node) for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [(node.module or "", node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        for name, node in names:
            if path.parent.name != "gpu":
                assert name.partition(".")[0] != "triton", path
            assert not (name.startswith("megatron_v2pe.kernels.gpu") and node in tree.body), path


def test_nothing_at_all(numbers):
    """No rows: a pack without images."""
    with choice.forced("triton"):
        assert swiglu.swiglu(numbers(0, 4)).shape == (0, 2)
        assert gelu.gelu_backward(numbers(0, 4), numbers(0, 4))[2].tolist() == [0, 0, 0, 0]
        none = norms.add_rms_norm(numbers(0, 4), numbers(0, 4), numbers(4), 1e-5)
        angles = numbers(0, 2).float()
        split = with_gradients(rotary.split_norm_and_rotate, 3, 1e-5, angles, angles)
        found = split(numbers(0, 1, 3, 4), numbers(4), numbers(4), *[numbers(0, 1, 4)] * 3)
        assert not any(part.any() for part in found)
        assert none[0].shape == none[1].shape == (0, 4)


def test_a_planted_mistake_is_seen(numbers, monkeypatch):
    """A SwiGLU that takes the wrong half for the gate, and a rotation in the other direction."""
    true = swiglu.swiglu_backward
    joint, gradient = numbers(7, 600), numbers(7, 300)
    swapped = torch.cat(joint.chunk(2, dim=-1)[::-1], dim=-1)
    assert max(errors(lambda g, j: true(g, swapped.to(j) if j.dtype == torch.float64 else j), gradient, joint)) > 0.05
    angles = numbers(9, 4).float()
    with choice.forced("triton"):
        turned = rotary.split_and_rotate(numbers(9, 1, 3, 8), angles.cos(), angles.sin())[0]
        other = rotary.split_and_rotate(numbers(9, 1, 3, 8), angles.cos(), -angles.sin())[0]
    assert (turned - other).abs().max() > BREAK_IS_SEEN_ABOVE


def test_gelu_is_the_exact_one():
    hidden = torch.linspace(-4, 4, 100, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(F.gelu(hidden).sum(), hidden)
    activated, gradient, total = gelu.gelu_backward(torch.ones(100, 1).double(), hidden.detach().unsqueeze(1))
    assert torch.equal(activated.squeeze(1), gelu.gelu(hidden).detach())
    assert torch.allclose(gradient.squeeze(1), expected) and torch.allclose(total, expected.sum())


def test_the_form_is_chosen_by_the_device_alone(monkeypatch):
    choice._wanted.cache_clear()
    some = torch.ones(2)
    assert not choice.use_triton(some)
    with choice.forced("triton"):
        assert choice.use_triton(some, None) and not choice.use_triton(some.double())
        with choice.forced("plain"):
            assert not choice.use_triton(some)
        assert choice.use_triton(some)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert not choice._wanted()
    choice._wanted.cache_clear()
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    assert choice._wanted()
    for value, expected in (("plain", False), ("auto", True)):
        choice._wanted.cache_clear()
        monkeypatch.setenv(choice.VARIABLE, value)
        assert choice._wanted() is expected
    choice._wanted.cache_clear()
    monkeypatch.setenv(choice.VARIABLE, "fast")
    with pytest.raises(ConfigError, match="MEGATRON_V2PE_KERNELS=fast is none of auto, plain"):
        choice._wanted()
    choice._wanted.cache_clear()
