"""The one object that says where computation runs: CPU with gloo, or CUDA with NCCL."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from megatron_v2pe.device import mcore_shims
from megatron_v2pe.device.cuda_start import device_index, grow_segments, ranks_per_device
from megatron_v2pe.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A kind of device and this process's index on it."""

    kind: str
    """`cpu` or `cuda`."""
    index: int = 0

    @classmethod
    def choose(cls, kind: str = "auto", index: int = 0) -> Device:
        """Return the named device; `auto` is CUDA where PyTorch sees a GPU, CPU elsewhere.

        Args:
            kind: `auto`, `cpu` or `cuda`.
            index: number of this process on its machine; on CUDA it takes the card of that number.

        Raises:
            ConfigError: unknown kind, CUDA asked for but absent, or more processes than GPUs on this machine.
        """
        if kind not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device {kind!r} is none of auto, cpu, cuda")
        available = torch.cuda.is_available()
        if kind == "cuda" and not available:
            raise ConfigError("device cuda was asked for, but PyTorch sees no GPU; use --device cpu")
        if kind == "cpu" or not available:
            return cls("cpu")
        grow_segments()
        return cls("cuda", device_index(index))

    @property
    def torch_device(self) -> torch.device:
        """The device tensors live on."""
        return torch.device("cuda", self.index) if self.kind == "cuda" else torch.device("cpu")

    @property
    def backend(self) -> str:
        """The process-group backend."""
        return "nccl" if self.kind == "cuda" else "gloo"

    def describe(self) -> str:
        """Return the device in words, as tools print it when they start: kind, model, memory, cores or capability."""
        if self.kind != "cuda":
            return f"cpu, {torch.get_num_threads()} threads"
        card = torch.cuda.get_device_properties(self.index)
        capability = f"compute capability {card.major}.{card.minor}"
        return f"{self.torch_device}, {card.name}, {card.total_memory / 2**30:.1f} GiB, {capability}"

    def memory_bytes(self) -> int | None:
        """Return the memory of the card, or of this rank's part of it where several share one; None on the CPU."""
        if self.kind != "cuda":
            return None
        return torch.cuda.get_device_properties(self.index).total_memory // ranks_per_device()

    def activate(self) -> None:
        """Make Megatron-Core use this device in this process."""
        if self.kind == "cuda":
            assert not mcore_shims.installed(), "CPU shims are active in a process that uses CUDA"
            torch.cuda.set_device(self.index)
        else:
            mcore_shims.install()

    def synchronize(self) -> None:
        """Wait until the work issued so far is done."""
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def peak_memory_bytes(self) -> int:
        """Return the peak of memory in bytes: allocated on the GPU, the process's resident set on the CPU."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
