"""InternVL2-2B with made-up weights on one device, for the parts that measure speed; a small model on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_v2pe.device.device import Device
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

POLICY = StridePolicy("v2pe_fix", 64)
ALONE = ParallelConfig()


@dataclass(frozen=True)
class Size:
    """A model and its type."""

    hf_config: dict[str, Any]
    dtype: torch.dtype

    @property
    def vocabulary(self) -> int:
        """Rows without padding."""
        return self.hf_config["llm_config"]["vocab_size"]

    @property
    def image_token(self) -> int:
        """Id of `<IMG_CONTEXT>`: the published checkpoints' where the vocabulary is theirs."""
        return self.vocabulary - 7


def size_for(device: str) -> Size:
    """Return the published sizes in bf16 for a GPU, a model of a few layers in fp32 for the CPU."""
    config = internvl2_2b_config()
    if device == "cuda":
        return Size(config, torch.bfloat16)
    config["llm_config"] |= {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 2048}
    config["llm_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config["vision_config"] |= {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    config["vision_config"] |= {"num_attention_heads": 2}
    return Size(config, torch.float32)


@contextmanager
def one_process(kind: str) -> Iterator[Device]:
    """Join a process group of this process alone."""
    device = Device(kind)
    device.activate()
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group(device.backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def model_of(size: Size, device: Device, **options: Any) -> Iterator[Any]:
    """Build the whole model with seeded weights, drawn on the device; options are those of `ModelOptions`."""
    settings = ModelOptions(params_dtype=size.dtype, perform_initialization=False, **options)
    with built(size.hf_config, ALONE, settings, POLICY, size.image_token) as model:
        model.to(device.torch_device)
        generator = torch.Generator(device.torch_device).manual_seed(0)
        for name, parameter in model.named_parameters():
            if name.endswith((".ls1", ".ls2")) or ("norm" in name and name.endswith("weight")):
                parameter.data.fill_(1.0)
            else:
                parameter.data.normal_(0, 0.02, generator=generator)
        yield model
