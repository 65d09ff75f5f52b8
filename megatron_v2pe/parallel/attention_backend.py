"""Which attention kernel runs on a card: what the setting allows, what is there, and what passes a small test first.

`parallel.attention_backend` names a family; inside it kernels stand in the order of their speed. The first that passes
is used. The test runs once per process for a device, type, head width and ratio of query heads to groups: small
blocks, forward and backward, against the reference; and, where blocks of a ring are merged, a backward pass that is
given the output and log-sum-exp merged over more keys than the block's. A kernel that refuses, or answers something
else, is passed over and said once. No test on the CPU: it has one kernel, and the test suite knows it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.parallel.block_attention import Block, BlockKernel, Reference
from megatron_v2pe.parallel.chunked_attention import Chunked
from megatron_v2pe.parallel.cuda_attention import TorchFlash
from megatron_v2pe.parallel.cudnn_attention import ALWAYS, DENSE, Cudnn, Mixed
from megatron_v2pe.parallel.flash_attention import flash_attn, installed

BACKENDS = ("auto", "cudnn", "flash", "flash_attn", "reference")
HALVES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.004}
"""Largest error a kernel may show, over the largest entry: some roundings of 2^-8 and 2^-11. A backward pass that does
not look at the log-sum-exp it is given is off by half."""
_ROWS = 300
"""Tokens of the test's blocks; no length that cuDNN is given unchanged."""
_log = get_logger(__name__)


def usable(device: torch.device) -> list[str]:
    """Return the values of `parallel.attention_backend` that mean something on a device."""
    if device.type != "cuda":
        return ["auto", "flash", "reference"]
    capability = torch.cuda.get_device_capability(device)
    found = {"cudnn": cudnn_present(capability), "flash_attn": bool(installed(capability[0]))}
    return [name for name in BACKENDS if found.get(name, True)]


def check_backend(name: str, device: torch.device) -> None:
    """Check that a backend can be used.

    Raises:
        ConfigError: unknown name, or one this machine has no kernel for; says what it has.
    """
    here = usable(device)
    if name in here:
        return
    what = f"on {device} usable are {', '.join(here)}"
    if name not in BACKENDS:
        raise ConfigError(f"parallel.attention_backend {name!r} is none of {', '.join(BACKENDS)}; {what}")
    why = {
        "cudnn": "cuDNN's attention needs a card of compute capability 8.0 or later and a PyTorch built with cuDNN",
        "flash_attn": "no flash-attn package for this device is installed",
    }
    raise ConfigError(f"parallel.attention_backend is {name}, but {why[name]}; {what}")


def cudnn_present(capability: tuple[int, int]) -> bool:
    """Tell whether PyTorch has cuDNN's attention for a card."""
    return capability[0] >= 8 and torch.backends.cudnn.is_available()


Choice = tuple[torch.device, torch.dtype, int, int, str, bool]
_chosen: dict[Choice, BlockKernel] = {}


def cuda_kernel(
    device: torch.device, dtype: torch.dtype, width: int, ratio: int, backend: str = "auto", merges: bool = False
) -> BlockKernel:
    """Return the fastest kernel of a backend that passes its test; kept.

    Args:
        device: a CUDA device.
        dtype: of queries, keys and values.
        width: of a head.
        ratio: query heads of a group.
        backend: value of `parallel.attention_backend`.
        merges: blocks are merged, as in a ring: backward is given what was merged.

    Raises:
        ConfigError: see `check_backend`.
    """
    choice = (device, dtype, width, ratio, backend, merges)
    kernel = _chosen.get(choice)
    if kernel is None:
        check_backend(backend, device)
        order = in_order(device, dtype, backend)
        if torch.cuda.is_current_stream_capturing():  # a test cannot run now; take what needs none
            return order[-1][1]
        name, kernel = first_that_passes(order, device, dtype, width, ratio, merges)
        _chosen[choice] = kernel
        _log.info("attention on %s, %s, heads of %d: %s", device, _short(dtype), width, name)
    return kernel


def in_order(device: torch.device, dtype: torch.dtype, backend: str) -> list[tuple[str, BlockKernel]]:
    """Return a backend's kernels with their names, fastest first; the last takes everything."""
    if backend == "reference":
        return [("reference", Reference())]
    chunked: tuple[str, BlockKernel] = "plain, in chunks of queries", Chunked()
    if dtype not in HALVES:
        return [chunked]
    capability = torch.cuda.get_device_capability(device)
    flash: tuple[str, BlockKernel] = "PyTorch's flash", TorchFlash()
    packages = [(f"flash-attn {number}", flash_attn(number)) for number in installed(capability[0])]
    if backend == "cudnn":
        return [("cuDNN wherever it can", Mixed(Cudnn(), TorchFlash(), ALWAYS)), flash, chunked]
    if backend == "flash_attn":
        return [*packages, flash, chunked]
    if backend == "flash":
        return [flash, chunked]
    # 3 and 4 come near cuDNN by their papers, take documents of any lengths and build no plans; not measured by us.
    newest = [(name, kernel) for name, kernel in packages if name != "flash-attn 2"]
    varlen = [(name, kernel) for name, kernel in packages if name == "flash-attn 2"] + [flash]
    mixed: list[tuple[str, BlockKernel]] = []
    if capability[0] >= 9 and cudnn_present(capability):  # cuDNN's lead was measured on Hopper
        mixed = [
            (f"cuDNN for long documents, {name} for the rest", Mixed(Cudnn(), kernel, DENSE)) for name, kernel in varlen
        ]
    return [*newest, *mixed, *varlen, chunked]


def candidates(device: torch.device, dtype: torch.dtype, width: int, ratio: int) -> list[tuple[str, BlockKernel]]:
    """Return every single kernel that passes its test here, with its name: what a table of kernels compares."""
    found: dict[str, BlockKernel] = {}
    if device.type != "cuda":
        from megatron_v2pe.parallel.block_attention import CpuFlash

        return [("flash for the CPU", CpuFlash()), ("plain, in chunks of queries", Chunked())]
    for backend in usable(device):
        if backend != "reference":
            found |= dict(in_order(device, dtype, backend))
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

    The last is not tested. Arguments as of `probed`.
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
        kernel: the kernel; of a `Mixed` one both are tested.
        device: where.
        dtype: of the tensors.
        width: of a head.
        ratio: query heads of a group.
        merges: backward is given what was merged over more keys too.
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
    """What the kernel says and what is right: results of a causal block, and gradients of half of a merged one."""
    generator, groups, scale = torch.Generator().manual_seed(0), 2, width**-0.5
    shapes = [(_ROWS, count, width) for count in (groups * ratio, groups, groups, groups * ratio)]
    query, key, value, outgoing = (torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes)
    wide = query.float(), key.float(), value.float()
    reference, lens = Reference(), (_ROWS,)
    names = ("gradient of the query", "gradient of the key", "gradient of the value")
    for block in (Block(lens, lens, True, scale), Block(lens, lens, False, scale)):
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
    output, lse = reference.forward(*wide, Block(lens, lens, False, scale))
    half, block = _ROWS // 2, Block(lens, (_ROWS // 2,), False, scale)
    final = output.to(dtype), lse.contiguous()
    gradients = kernel.backward(outgoing, query, key[:half], value[:half], *final, block)
    expected = reference.backward(outgoing.float(), wide[0], wide[1][:half], wide[2][:half], output, lse, block)
    named = zip(names, gradients, expected, strict=True)
    yield from ((f"{name} of one of two merged blocks", a, b) for name, a, b in named)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
