"""A fingerprint of a rank's weights, made where they are: two integer sums for each parameter, read once.

Sums of integers do not depend on the order of additions, so that the same weights have the same fingerprint on every
device. It tells weights of one run from others; it is no protection against somebody who means to deceive.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 1 << 22
"""Values summed at once."""


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Return a fingerprint of the names, types, shapes and bits of all parameters of this rank."""
    names: list[str] = []
    sums: list[Tensor] = []
    for name, parameter in model.named_parameters():
        names.append(f"{name} {parameter.dtype} {tuple(parameter.shape)}")
        bits = parameter.detach().contiguous().view(-1).view(_INTEGERS[parameter.dtype.itemsize])
        total = torch.zeros(2, dtype=torch.int64, device=bits.device)
        for piece in bits.split(_PIECE):
            wide = piece.to(torch.int64)
            places = torch.arange(1, len(wide) + 1, device=bits.device)
            total = total * 31 + torch.stack([wide.sum(), (wide * places).sum()])
        sums.append(total)
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=16)
    if sums:
        digest.update(torch.stack(sums).cpu().numpy().tobytes())
    return digest.hexdigest()
