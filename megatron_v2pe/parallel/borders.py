"""Where documents begin and end, as small tensors on the device, brought there without the host waiting for it."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.parallel.block_attention import Block


@lru_cache(maxsize=256)
def borders(block: Block, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Running sums (int32) of query and key lengths, and the longest of each; kept, as all layers ask for the same."""
    sums = (torch.tensor([0, *accumulate(lens)], dtype=torch.int32) for lens in (block.query_lens, block.key_lens))
    queries, keys = (to_device(tensor, device) for tensor in sums)
    return queries, keys, max(block.query_lens), max(block.key_lens)
