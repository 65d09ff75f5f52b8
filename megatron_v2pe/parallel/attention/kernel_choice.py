"""Which attention kernel runs for given tensors: the fastest of a backend that passes a small test on this machine.

`parallel.attention_backend` names a backend (`attention_backend.py`), whose kernels stand in the order of their speed.
On CUDA the first that passes is used. The test runs once per process for a device, type, head width and ratio of query
heads to groups: small blocks, forward and backward, against the reference; and, where blocks of a ring are merged, a
backward pass that is given the output and log-sum-exp merged over more keys than the block's. A kernel that refuses or
gives other numbers is left out, with one warning. The last kernel of a backend takes everything and is not tested: on
the CPU the backends of this project have no other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.parallel.attention.attention_backend import ATTENTION_BACKENDS, check_backend, usable
from megatron_v2pe.parallel.attention.block import AttentionBlock, BlockKernel, CpuFlash, Reference
from megatron_v2pe.parallel.attention.chunked import Chunked
from megatron_v2pe.parallel.attention.mixed_kernels import Mixed

HALVES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.004}
"""Largest error a kernel may show, over the largest entry: some roundings of 2^-8 and 2^-11. A backward pass that does
not look at the log-sum-exp it is given is off by half."""
_ROWS = 300
"""Tokens of the test's blocks; no length that cuDNN is given unchanged."""
_log = get_logger(__name__)

Choice = tuple[torch.device, torch.dtype, int, int, str, bool]
_chosen: dict[Choice, BlockKernel] = {}


def choose_kernel(query: Tensor, groups: int | None = None, backend: str = "auto", merges: bool = False) -> BlockKernel:
    """Return the fastest kernel for these queries' device and type.

    Args:
        query: [queries, heads, d].
        groups: key-value heads; as many as query heads by default.
        backend: value of `parallel.attention_backend`.
        merges: blocks are merged, as in a ring: backward is given what was merged.

    Raises:
        ConfigError: a backend that cannot be used on CUDA here.
    """
    ratio = 1 if groups is None else query.shape[-2] // groups
    return kernel_for(query.device, query.dtype, query.shape[-1], ratio, backend, merges)


def kernel_for(
    device: torch.device, dtype: torch.dtype, width: int, ratio: int, backend: str = "auto", merges: bool = False
) -> BlockKernel:
    """Return the fastest kernel of a backend that passes its test; the choice is kept for later calls.

    Args:
        device: CPU or a CUDA device.
        dtype: type of queries, keys and values.
        width: width of a head.
        ratio: query heads of a group.
        backend: value of `parallel.attention_backend`.
        merges: blocks are merged, as in a ring: backward is given what was merged.

    Raises:
        ConfigError: see `check_backend`; on CUDA alone, for on the CPU every backend has a kernel.
    """
    choice = (device, dtype, width, ratio, backend, merges)
    kernel = _chosen.get(choice)
    if kernel is not None:
        return kernel
    on_cuda = device.type == "cuda"
    if on_cuda:
        check_backend(backend, device)
    order = ATTENTION_BACKENDS.get(backend).kernels(device, dtype)
    if on_cuda and torch.cuda.is_current_stream_capturing():  # a test cannot run now; take what needs none
        return order[-1][1]
    name, kernel = first_that_passes(order, device, dtype, width, ratio, merges)
    _chosen[choice] = kernel
    if on_cuda:
        _log.info("attention on %s, %s, heads of %d: %s", device, _short(dtype), width, name)
    return kernel


def candidates(device: torch.device, dtype: torch.dtype, width: int, ratio: int) -> list[tuple[str, BlockKernel]]:
    """Return every single kernel that passes its test here, with its name: what a table of kernels compares."""
    if device.type != "cuda":
        return [("flash for the CPU", CpuFlash()), ("plain, in chunks of queries", Chunked())]
    found: dict[str, BlockKernel] = {}
    for backend in usable(device):
        if backend != "reference":
            found |= dict(ATTENTION_BACKENDS.get(backend).kernels(device, dtype))
    case = device, dtype, width, ratio, False
    return [(name, kernel) for name, kernel in found.items() if probed(kernel, *case) is None]


def first_that_passes(
    order: Iterable[tuple[str, BlockKernel]],
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    ratio: int,
    merges: bool,
) -> tuple[str, BlockKernel]:
    """Return the first kernel that passes its test, with its name; say which did not, and why.

    The last is not tested. The other arguments are those of `probed`.
    """
    kernels = list(order)
    for name, kernel in kernels[:-1]:
        problem = probed(kernel, device, dtype, width, ratio, merges)
        if problem is None:
            return name, kernel
        _log.warning(
            "attention kernel not used on %s for %s heads of %d, %d of them a group%s: %s: %s",
            device,
            _short(dtype),
            width,
            ratio,
            ", in a ring" if merges else "",
            name,
            problem,
        )
    return kernels[-1]


def probed(
    kernel: BlockKernel, device: torch.device, dtype: torch.dtype, width: int, ratio: int, merges: bool
) -> str | None:
    """Test a kernel on small blocks; return None, or what is wrong with it in words.

    Args:
        kernel: the kernel; both kernels of a `Mixed` one are tested.
        device: where the test runs.
        dtype: type of the tensors.
        width: width of a head.
        ratio: query heads of a group.
        merges: whether backward is tested with what was merged over more keys than the block's.
    """
    kernels = (kernel.dense, kernel.varlen) if isinstance(kernel, Mixed) else (kernel,)
    problems = (_problem(single, device, dtype, width, ratio, merges) for single in kernels)
    return next((problem for problem in problems if problem is not None), None)


@torch.no_grad()
def _problem(
    kernel: BlockKernel, device: torch.device, dtype: torch.dtype, width: int, ratio: int, merges: bool
) -> str | None:
    try:
        for what, ours, exact in _comparisons(kernel, device, dtype, width, ratio, merges):
            if ours.shape != exact.shape:
                return f"{what} has shape {tuple(ours.shape)}, not {tuple(exact.shape)}"
            error = ((ours.float() - exact).abs().max() / exact.abs().max()).item()
            limit = TOLERANCE.get(dtype, 1e-4)
            if not error < limit:
                return f"{what} differs from the reference by {error:.3g} of its largest entry, {limit:.3g} allowed"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a kernel says when it refuses
        return f"it refuses: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    return None


def _comparisons(
    kernel: BlockKernel, device: torch.device, dtype: torch.dtype, width: int, ratio: int, merges: bool
) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Yield what the kernel gives and what is right: of a causal block results, of half of a merged one gradients."""
    generator, groups, scale = torch.Generator().manual_seed(0), 2, width**-0.5
    shapes = [(_ROWS, count, width) for count in (groups * ratio, groups, groups, groups * ratio)]
    query, key, value, outgoing = (torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes)
    wide = query.float(), key.float(), value.float()
    reference, lens = Reference(), (_ROWS,)
    names = ("gradient of the query", "gradient of the key", "gradient of the value")
    for block in (AttentionBlock(lens, lens, True, scale), AttentionBlock(lens, lens, False, scale)):
        which = "of a causal block" if block.causal else "of a block"
        output, lse = kernel.forward(query, key, value, block)
        exact, exact_lse = reference.forward(*wide, block)
        yield f"output {which}", output, exact
        yield f"log-sum-exp {which}", lse, exact_lse
        gradients = kernel.backward(outgoing, query, key, value, output, lse, block)
        expected = reference.backward(outgoing.float(), *wide, exact, exact_lse, block)
        yield from ((f"{name} {which}", a, b) for name, a, b in zip(names, gradients, expected, strict=True))
    if not merges:
        return
    output, lse = reference.forward(*wide, AttentionBlock(lens, lens, False, scale))
    half, block = _ROWS // 2, AttentionBlock(lens, (_ROWS // 2,), False, scale)
    final = output.to(dtype), lse.contiguous()
    gradients = kernel.backward(outgoing, query, key[:half], value[:half], *final, block)
    expected = reference.backward(outgoing.float(), wide[0], wide[1][:half], wide[2][:half], output, lse, block)
    named = zip(names, gradients, expected, strict=True)
    yield from ((f"{name} of one of two merged blocks", a, b) for name, a, b in named)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
