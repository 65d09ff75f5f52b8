"""The exact GELU (by the error function, as InternViT has it), and its gradient together with that of a bias before it.

PyTorch's own GELU is one pass each way, on CPU and CUDA, and is what runs forward. Of its gradient a product with a
bias needs the sum over rows too: on CUDA one reading gives both, and the activation once more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_v2pe.kernels.choice import use_triton


def gelu(hidden: Tensor) -> Tensor:
    """Return the exact GELU of a tensor of any shape; one pass each way as it is."""
    return F.gelu(hidden)


def gelu_backward(gradient: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the activation once more, the gradient of its input, and that gradient's sum over rows.

    Args:
        gradient: [n, f], of the activation.
        hidden: [n, f], what was activated.

    Returns:
        [n, f] twice and [f]; the sum, formed in float32 or wider, may be of a wider type than the others.
    """
    if use_triton(gradient, hidden):
        from megatron_v2pe.kernels.gpu import gelu as gpu

        return gpu.backward(gradient.contiguous(), hidden.contiguous())
    hidden_gradient = torch.ops.aten.gelu_backward(gradient, hidden)
    return F.gelu(hidden), hidden_gradient, hidden_gradient.sum(0)
