"""One decode step of n sequences as a function of tensors that stay where they are; on CUDA captured in a graph.

A step called operation by operation keeps the host busy for longer than the card: 24 layers are some 300 kernels of a
few microseconds each. Captured once, they are launched together. The step reads what it needs (tokens, places, rotary
factors) from buffers of its own, counts on by itself, and leaves logits; nothing in it asks the host. Uncaptured it is
the same function, on any device, and that is what the tests compare. The capture itself was not run on a GPU.

Steps are captured per number of sequences; with the arena's memory (`arena.py`) they share its size, and go when it
moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.generate.arena import Arena
from megatron_v2pe.generate.lean_layers import LeanLayer
from megatron_v2pe.generate.memory import is_out_of_memory

WINDOW = 64
"""Steps whose rotary factors and draws are made at once."""
_log = get_logger(__name__)
_warned: set[str] = set()


class StaticStep:
    """A decode step of `count` sequences."""

    def __init__(
        self,
        count: int,
        embedding: Tensor,
        layers: Sequence[LeanLayer],
        logits: Callable[[Tensor], Tensor],
        arena: Arena,
        capture: bool,
    ) -> None:
        """Make the buffers.

        Args:
            count: sequences.
            embedding: [vocabulary, hidden].
            layers: of the whole decoder.
            logits: of hidden states [count, hidden].
            arena: keys and values; the step cannot be used once it has moved.
            capture: make a CUDA graph of it at the first run.
        """
        device, width = embedding.device, layers[0].head_dim
        self._embedding, self._layers, self._logits, self._arena = embedding, layers, logits, arena
        self._capture = capture
        self._graph: Any = None
        self._found: Tensor | None = None
        self.tokens = torch.zeros(count, dtype=torch.int64, device=device)
        """int64 [count]: what the step adds."""
        self.starts = torch.zeros(count, dtype=torch.int64, device=device)
        """int64 [count]: first place of each sequence."""
        self.lengths = torch.zeros(count, dtype=torch.int64, device=device)
        """int64 [count]: places used; the step counts its token."""
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        """int64 [1]: which of the factors is next; the step counts on."""
        shape = (WINDOW, count, 1, 1, width)
        self.cos = torch.zeros(shape, dtype=torch.float32, device=device)
        """float32 [WINDOW, count, 1, 1, d]: cosines, see `lean_layers.rotation`."""
        self.signed_sin = torch.zeros(shape, dtype=torch.float32, device=device)

    def run(self) -> Tensor:
        """Add `tokens`; return the logits [count, vocab_size] of the next, which the next run overwrites."""
        if self._capture and self._graph is None:
            self._capture = self._captured()
        if self._graph is None or self._found is None:
            return self._body()
        self._graph.replay()
        return self._found

    def _body(self) -> Tensor:
        hidden = F.embedding(self.tokens, self._embedding)
        cos, signed_sin = self.cos.index_select(0, self.at)[0], self.signed_sin.index_select(0, self.at)[0]
        longer = self.lengths + 1
        for layer in self._layers:
            cache = self._arena.layers[layer.number]
            hidden = layer.decode(hidden, cos, signed_sin, cache, self.starts, self.lengths, longer)
        self.lengths.add_(1)
        self.at.add_(1)
        return self._logits(hidden)

    def _captured(self) -> bool:
        """Make a graph of the step; return whether it is there. The state is as before."""
        counted = self.lengths.clone(), self.at.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(2):  # kernels are compiled and libraries find their workspaces; nothing of it is kept,
                    self._body()  # for the token is written again, to the same places, by the step itself
                    self.lengths.copy_(counted[0])
                    self.at.copy_(counted[1])
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Threads that read images may allocate meanwhile: that is no part of the step.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._found = self._body()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            torch.cuda.current_stream().wait_stream(stream)
            self.lengths.copy_(counted[0])
            self.at.copy_(counted[1])
            _warn_once(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}")
            return False
        self._graph = graph
        return True


def _warn_once(problem: str) -> None:
    if problem not in _warned:
        _warned.add(problem)
        _log.warning("decoding goes on without a CUDA graph, and slower, for it could not be captured: %s", problem)
