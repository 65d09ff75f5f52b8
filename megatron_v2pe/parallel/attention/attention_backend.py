"""What the values of `parallel.attention_backend` mean: which attention kernels a run may use, and on which device.

A backend is one class under a name. Those of this project stand below. A plug-in (`base/plugins.py`) adds a further one
by a file `attention_backend.py` in its folder:

    ATTENTION_BACKENDS.add("my_kernels", MyKernels())

The name is then a value of the setting, and every kernel the class returns must pass the small test of
`kernel_choice.py` before it is used. The settings read the names alone, so this file imports PyTorch and kernels only
inside of methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable

if TYPE_CHECKING:
    import torch
    from torch.nn.attention import SDPBackend

    from megatron_v2pe.parallel.attention.block import BlockKernel

    NamedKernel = tuple[str, BlockKernel]
    """A kernel and its name in logs."""


class AttentionBackend(Protocol):
    """A value of `parallel.attention_backend`."""

    def refusal(self, device: torch.device) -> str | None:
        """Return why this backend cannot be used on a device, in words, or None where it can."""
        ...

    def kernels(self, device: torch.device, dtype: torch.dtype) -> list[NamedKernel]:
        """Return the kernels for attention over packs, fastest first; the last one must take everything.

        Args:
            device: CPU or a CUDA device.
            dtype: type of queries, keys and values.
        """
        ...

    def tile_kernels(self) -> list[SDPBackend]:
        """Return which of PyTorch's own kernels may run over image tiles on CUDA, in the order they are tried."""
        ...


ATTENTION_BACKENDS: Registry[AttentionBackend] = Registry("parallel.attention_backend", __name__, "attention_backend")
"""All backends by name."""


def usable(device: torch.device) -> list[str]:
    """Return the values of `parallel.attention_backend` that can be used on a device."""
    return [name for name in ATTENTION_BACKENDS.names() if ATTENTION_BACKENDS.get(name).refusal(device) is None]


def check_backend(name: str, device: torch.device) -> None:
    """Check that a backend can be used.

    Raises:
        ConfigError: the name is unknown, or this machine has no kernel for it; says what it has.
    """
    backend = ATTENTION_BACKENDS.find(name)
    why = None if backend is None else backend.refusal(device)
    if backend is not None and why is None:
        return
    what = f"on {device} usable are {', '.join(usable(device))}"
    if backend is None:
        known = ", ".join(ATTENTION_BACKENDS.names())
        raise ConfigError(f"parallel.attention_backend {printable(name)[:100]!r} is none of {known}; {what}")
    raise ConfigError(f"parallel.attention_backend is {name}, but {why}; {what}")


class Flash:
    """`flash`: the flash operators that PyTorch brings for CUDA and for the CPU."""

    def refusal(self, device: torch.device) -> str | None:
        """Return None: PyTorch has a flash operator for every device."""
        return None

    def kernels(self, device: torch.device, dtype: torch.dtype) -> list[NamedKernel]:
        """Return PyTorch's flash operator, and on CUDA plain attention in chunks for what it does not take."""
        from megatron_v2pe.parallel.attention.block import CpuFlash

        if device.type != "cuda":
            return [("flash for the CPU", CpuFlash())]
        return [*self.fast(device, dtype), *_in_chunks()]

    def fast(self, device: torch.device, dtype: torch.dtype) -> list[NamedKernel]:
        """Return the kernels for CUDA beside plain attention in chunks: none for types other than bf16 and fp16."""
        return _torch_flash() if _is_half(dtype) else []

    def tile_kernels(self) -> list[SDPBackend]:
        """Return flash attention first."""
        from torch.nn.attention import SDPBackend

        return [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class FlashAttn(Flash):
    """`flash_attn`: the flash-attn packages 2 to 4 that are installed, then what `flash` has."""

    def refusal(self, device: torch.device) -> str | None:
        """Refuse devices no installed package is made for."""
        if device.type == "cuda" and _packages(device):
            return None
        return "no flash-attn package for this device is installed"

    def fast(self, device: torch.device, dtype: torch.dtype) -> list[NamedKernel]:
        """Return the packages, newest first."""
        return [*_packages(device), *_torch_flash()] if _is_half(dtype) else []


class CuDnn(Flash):
    """`cudnn`: cuDNN's kernel for all documents it takes, PyTorch's flash operator for the others."""

    def refusal(self, device: torch.device) -> str | None:
        """Refuse devices cuDNN has no attention for."""
        if device.type == "cuda" and _has_cudnn(device):
            return None
        return "cuDNN's attention needs a card of compute capability 8.0 or later and a PyTorch built with cuDNN"

    def fast(self, device: torch.device, dtype: torch.dtype) -> list[NamedKernel]:
        """Return cuDNN wherever it can, with PyTorch's flash operator for the rest."""
        if not _is_half(dtype):
            return []
        from megatron_v2pe.parallel.attention.cudnn import Cudnn
        from megatron_v2pe.parallel.attention.flash import TorchFlash
        from megatron_v2pe.parallel.attention.mixed_kernels import ALWAYS, Mixed

        return [("cuDNN wherever it can", Mixed(Cudnn(), TorchFlash(), ALWAYS)), *_torch_flash()]

    def tile_kernels(self) -> list[SDPBackend]:
        """Return cuDNN first."""
        from torch.nn.attention import SDPBackend

        return [SDPBackend.CUDNN_ATTENTION, *super().tile_kernels()]


class Auto(CuDnn):
    """`auto`: all kernels of this machine in the order of their speed."""

    def refusal(self, device: torch.device) -> str | None:
        """Return None: some kernel runs everywhere."""
        return None

    def fast(self, device: torch.device, dtype: torch.dtype) -> list[NamedKernel]:
        """Return the newest packages, then cuDNN for long documents together with another kernel, then that alone."""
        if not _is_half(dtype):
            return []
        import torch

        from megatron_v2pe.parallel.attention.cudnn import Cudnn
        from megatron_v2pe.parallel.attention.mixed_kernels import DENSE, Mixed

        packages = _packages(device)
        # 3 and 4 come near cuDNN by their papers, take documents of any lengths and build no plans; not measured by us.
        newest = [(name, kernel) for name, kernel in packages if name != "flash-attn 2"]
        any_lengths = [(name, kernel) for name, kernel in packages if name == "flash-attn 2"] + _torch_flash()
        mixed: list[NamedKernel] = []
        if torch.cuda.get_device_capability(device)[0] >= 9 and _has_cudnn(device):  # its lead was measured on Hopper
            mixed = [
                (f"cuDNN for long documents, {name} for the rest", Mixed(Cudnn(), kernel, DENSE))
                for name, kernel in any_lengths
            ]
        return [*newest, *mixed, *any_lengths]


class PlainAttention:
    """`reference`: softmax attention written out, quadratic in memory."""

    def refusal(self, device: torch.device) -> str | None:
        """Return None: it runs everywhere."""
        return None

    def kernels(self, device: torch.device, dtype: torch.dtype) -> list[NamedKernel]:
        """Return plain attention."""
        from megatron_v2pe.parallel.attention.block import Reference

        return [("reference", Reference())]

    def tile_kernels(self) -> list[SDPBackend]:
        """Return PyTorch's plain attention alone."""
        from torch.nn.attention import SDPBackend

        return [SDPBackend.MATH]


ATTENTION_BACKENDS.add("auto", Auto())
ATTENTION_BACKENDS.add("cudnn", CuDnn())
ATTENTION_BACKENDS.add("flash", Flash())
ATTENTION_BACKENDS.add("flash_attn", FlashAttn())
ATTENTION_BACKENDS.add("reference", PlainAttention())


def _is_half(dtype: torch.dtype) -> bool:
    """Tell whether a type is bf16 or fp16, the only ones the fast kernels take."""
    return dtype.is_floating_point and dtype.itemsize == 2


def _torch_flash() -> list[NamedKernel]:
    from megatron_v2pe.parallel.attention.flash import TorchFlash

    return [("PyTorch's flash", TorchFlash())]


def _in_chunks() -> list[NamedKernel]:
    """Return plain attention in chunks of queries, which takes every type and is linear in memory."""
    from megatron_v2pe.parallel.attention.chunked import Chunked

    return [("plain, in chunks of queries", Chunked())]


def _packages(device: torch.device) -> list[NamedKernel]:
    """Return the kernels of the installed flash-attn packages that are made for a card, newest first."""
    import torch

    from megatron_v2pe.parallel.attention.flash import flash_attn, installed

    major = torch.cuda.get_device_capability(device)[0]
    return [(f"flash-attn {number}", flash_attn(number)) for number in installed(major)]


def _has_cudnn(device: torch.device) -> bool:
    """Tell whether PyTorch has cuDNN's attention for a card."""
    import torch

    return torch.cuda.get_device_capability(device)[0] >= 8 and torch.backends.cudnn.is_available()
