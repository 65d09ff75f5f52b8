"""Does everything of an opened model lie on the device that was chosen? Shown on a CPU, with PyTorch's `meta` device.

Tensors of `meta` have a shape and no values, so that a whole checkpoint can be opened and asked there. PyTorch lets
some operations mix devices without a word; `Watched` notes every operation that does. Runs inside a `WorkerPool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.generate import session as session_module
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.kv_cache import KVCache
from megatron_v2pe.generate.lean_layers import LeanLinear
from megatron_v2pe.generate.pretrained import ChatQuestion, Pretrained, open_pretrained
from megatron_v2pe.generate.prompt import checkpoint_tiling
from megatron_v2pe.generate.session import Session

CHOSEN = torch.device("meta")
_COPIES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
}
"""Operations that may meet two devices."""


class Watched(TorchDispatchMode):
    """Notes operations whose tensors lie on different devices; numbers (tensors without axes) may lie anywhere."""

    def __init__(self) -> None:
        """Note nothing yet."""
        super().__init__()
        self.mixed: list[str] = []
        self.calls = 0
        """Operations seen that gave something on the chosen device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look where its tensors lie."""
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.calls += any(tensor.device == CHOSEN for tensor in made)
        if func not in _COPIES and len({tensor.device.type for tensor in given}) > 1:
            self.mixed.append(f"{func}: {[(tuple(tensor.shape), str(tensor.device)) for tensor in given]}")
        return result


@dataclass
class Places:
    """Where things lie: name -> device."""

    weights: dict[str, str]
    """Parameters and buffers of the model."""
    lean: dict[str, str]
    """What the engine has taken of them."""
    working: dict[str, str]
    """Cache, rotary factors, image features, hidden states, logits."""
    mixed: list[str]
    """Operations between devices."""
    calls: int
    """Operations on the chosen device."""


def run(checkpoint: Path, questions: Sequence[ChatQuestion], planted_break: str | None = None) -> Places:
    """Open a checkpoint on the chosen device, prefill the questions and decode two tokens.

    Args:
        checkpoint: a Megatron checkpoint.
        questions: at least one, of the same model.
        planted_break: one of `BREAKS`.
    """
    working: dict[str, str] = {}
    with _opened(checkpoint, planted_break) as model, Watched() as watched:
        engine = model.engine
        try:
            working |= _asked(model, questions)
        except (NotImplementedError, RuntimeError) as error:  # how `meta` refuses to meet another device
            watched.mixed.append(f"{type(error).__name__}: {error}")
    everything = [*engine.model.named_parameters(), *engine.model.named_buffers()]
    return Places(
        weights={name: str(tensor.device) for name, tensor in everything},
        lean={name: str(tensor.device) for name, tensor in _lean(engine)},
        working=working,
        mixed=watched.mixed,
        calls=watched.calls,
    )


def _asked(model: Pretrained, questions: Sequence[ChatQuestion]) -> dict[str, str]:
    """Answer two tokens; return where things lie."""
    engine = model.engine
    tiling = checkpoint_tiling(model.config, 2)
    prompts = model.encode(questions, tiling, 8)
    session = Session(engine, prompts)
    working = {f"features of {len(prompts)} prompts": str(engine.features(prompts).device)}
    logits = session.prefill()
    assert logits is not None
    working["first logits"] = str(logits.device)
    for _ in range(2):
        following = session.decode([1] * len(session))
        assert following is not None
        working["logits"] = str(following.device)
    ahead = session._ahead
    assert ahead is not None
    working |= {"rotary, same": str(ahead[0].device), "rotary, other": str(ahead[1].device)}
    engine.arena.make_room(8)
    step = engine.step(2)
    buffers = [step.tokens, step.starts, step.lengths, step.at, step.cos, step.signed_sin, *engine.arena.layers[-1]]
    working |= {f"static step {number}": str(tensor.device) for number, tensor in enumerate(buffers)}
    return working | {f"cache {number}": str(tensor.device) for number, tensor in enumerate(_cached(session))}


@contextmanager
def _opened(checkpoint: Path, planted_break: str | None) -> Iterator[Pretrained]:
    chosen = mock.patch.object(Device, "torch_device", CHOSEN)
    stays = mock.patch.object(launch, "shutdown")  # the pool's process group outlives the model
    with chosen, stays, BREAKS[planted_break](), open_pretrained(checkpoint, device="cpu") as model:
        yield model


def _cached(session: Session) -> Iterator[Tensor]:
    assert isinstance(session.cache, KVCache)
    for slab in session.cache.slabs:
        for pair in slab.layers:
            yield from pair


def _lean(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    for layer in engine.layers:
        for name, value in vars(layer).items():
            parts = (value.weight, value.bias) if isinstance(value, LeanLinear) else value
            for part in parts if isinstance(parts, tuple) else (parts,):
                if isinstance(part, Tensor):
                    yield f"{layer.number}.{name}", part
    yield "head", engine._head


def _not_moved() -> Any:
    """Leave the model where it was built, as before."""
    return mock.patch.object(nn.Module, "to", lambda self, *_: self)


def _angles_on_the_host() -> Any:
    """Make rotary factors on the CPU."""
    original = session_module.rotation

    def rotation(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return original(torch.zeros(cos.shape), torch.zeros(sin.shape))

    return mock.patch.object(session_module, "rotation", rotation)


def _cache_on_the_host() -> Any:
    """Keep keys and values on the CPU."""
    original = KVCache.__init__

    def made(self: KVCache, *settings: Any) -> None:
        original(self, *settings[:-1], torch.device("cpu"))  # pyright: ignore[reportCallIssue]

    return mock.patch.object(KVCache, "__init__", made)


BREAKS: dict[str | None, Callable[[], AbstractContextManager[Any]]] = {
    None: nullcontext,
    "model not moved": _not_moved,
    "angles on the host": _angles_on_the_host,
    "cache on the host": _cache_on_the_host,
}
