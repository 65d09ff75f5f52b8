"""Where numbers stop being numbers: looked for once an answer has failed, in the weights, then layer by layer.

While answers are made, one sum a step over the logits tells whether all of them are numbers (`sampling.marked`);
nothing else is looked at, for every look costs. When a sequence has failed, every rank of its copy of the model comes
here: the weights are read once, and if they are whole the same tokens run again, with an eye on what every part gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_v2pe.errors import V2PEError
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.memory import is_out_of_memory
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.vision_cache import VisionCache
from megatron_v2pe.parallel import topology

Run = Callable[[Engine, Prompt], None]
"""Runs a prompt through the model; `session.Session`'s prefill, which stands above this module's engine."""
_LAYER = re.compile(r"language_model\.decoder\.layers\.(\d+)\.")


def explain(engine: Engine, prompt: Prompt, tokens: list[int], run: Run) -> str:
    """Say which tensor or which layer gives what is not finite; every rank of the copy calls this, all get one answer.

    Args:
        engine: of the model.
        prompt: whose answer has failed.
        tokens: of its answer before the one that could not be chosen.
        run: runs a prompt.

    Returns:
        A sentence.
    """
    damaged = [line for line in _from_all_ranks(_damaged_weights(engine)) if line]
    if damaged:
        return f"weights are not finite: {damaged[0]}; the checkpoint is damaged, or the training that made it diverged"
    with torch.inference_mode(), _watched(engine) as found:
        failed = None
        try:
            run(engine, prompt.continued(tokens))
        except (V2PEError, RuntimeError, MemoryError) as error:
            if not isinstance(error, V2PEError) and not is_out_of_memory(error):
                raise
            failed = f"all weights are finite, and the prompt could not be run again to see more ({error})"
    places = [place for place in _from_all_ranks(min(found, default=None)) if place is not None]
    if places:
        return f"all weights are finite; {min(places)[1]}"
    return failed or (
        "all weights are finite, and the same tokens run again give numbers: the device or its memory may be at fault"
    )


def _damaged_weights(engine: Engine) -> str | None:
    """Return the first weight of this rank with values that are not finite, how many, and how many tensors have any."""
    found: list[str] = []
    model = engine.model
    for name, weight in model.named_parameters():
        values = _real_rows(name, weight.detach(), engine)
        if values.is_floating_point() and values.numel() and not _finite(values):
            nans, total = int(values.isnan().sum()), int((~values.isfinite()).sum())
            place = _LAYER.sub(lambda match: f"language_model.decoder.layers.{_number(model, int(match[1]))}.", name)
            found.append(f"{place} ({nans} NaN, {total - nans} infinite of {values.numel()})")
    if not found:
        return None
    return found[0] + (f" and {len(found) - 1} more tensors" if len(found) > 1 else "")


def _real_rows(name: str, weight: Tensor, engine: Engine) -> Tensor:
    """Leave out the rows that pad the vocabulary: they are never read, and may hold anything."""
    if not name.endswith(("word_embeddings.weight", "output_layer.weight")):
        return weight
    first = engine.coordinates.tensor_model_parallel_rank * weight.shape[0]
    return weight[: max(engine.model.internvl.llm.vocab_size - first, 0)]


def _number(model: Any, local: int) -> int:
    """Return the number of a decoder layer in the whole model, from 0."""
    return int(model.language_model.decoder.layers[local].layer_number) - 1


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _from_all_ranks(mine: Any) -> list[Any]:
    """Return what every rank of the copy has found, in the order of its ranks."""
    group = topology.model_copy_group()
    if group.size() == 1:
        return [mine]
    everyone: list[Any] = [None] * group.size()
    dist.all_gather_object(everyone, mine, group=group)
    return everyone


Found = list[tuple[tuple[int, int], str]]
"""(stage and place in it, what gave it): the least is the first."""


@contextmanager
def _watched(engine: Engine) -> Iterator[Found]:
    """Watch what every part of the model gives, without static steps and without cached image features."""
    found: Found = []
    stage = engine.groups.pp.rank()

    def see(order: int, what: str, *values: Tensor) -> None:
        if not all(_finite(value) for value in values if value.is_floating_point()):
            found.append(((stage, order), what))

    model: Any = engine.model
    layers, static, cache, features, logits, embed = (
        engine.layers, engine.static, engine.vision_cache, engine.features, engine.logits, model.embed)  # fmt: skip
    hooks = [*_tower_hooks(model, see)] if engine.stages.first else []
    numbers = [_number(model, number) for number in range(len(layers))]

    def watched(action: Callable[..., Tensor], order: int, what: str) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            value = action(*arguments)
            see(order, what, value)
            return value

        return run

    patched: Any = engine
    try:
        patched.layers = [
            _Watched(
                layer, 1_000_000 + number, f"layer {number} of the language model is the first whose output is not", see
            )
            for layer, number in zip(layers, numbers, strict=True)
        ]
        patched.vision_cache = VisionCache(0)
        if static:
            engine.arena.release()
            patched.static = False
        patched.features = watched(
            features, 100_000, "the features of its images are not: the vision tower or projector"
        )
        model.embed = watched(embed, 200_000, "the embedding of its tokens is not")
        patched.logits = watched(logits, 2_000_000, "what the layers give is; the final norm or the head is at fault")
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        patched.layers, patched.static, patched.vision_cache = layers, static, cache
        del patched.features, patched.logits, model.embed


def _tower_hooks(model: Any, see: Callable[..., None]) -> Iterator[Any]:
    """Watch the layers of the vision tower."""

    def watch(module: nn.Module, order: int, what: str) -> Any:
        def look(_module: nn.Module, _arguments: Any, output: Any) -> None:
            values = output if isinstance(output, tuple) else (output,)
            see(order, what, *(value for value in values if isinstance(value, Tensor)))

        return module.register_forward_hook(look)

    for number, layer in enumerate(model.vision_model.decoder.layers):
        yield watch(layer, 1 + number, f"layer {number} of the vision tower is the first whose output is not")
    yield watch(model.vision_projection, 90_000, "the projector of image features is the first whose output is not")


class _Watched:
    """A layer, and an eye on what it gives."""

    def __init__(self, layer: Any, order: int, what: str, see: Callable[..., None]) -> None:
        self._layer, self._order, self._what, self._see = layer, order, what, see

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *arguments: Any) -> Tensor:
        output = self._layer(*arguments)
        self._see(self._order, self._what, output)
        return output

    def keys_and_values(self, *arguments: Any) -> Any:
        """Compute the last layer's keys and values for all tokens but the last: the rest of it does not run."""
        values = self._layer.keys_and_values(*arguments)
        self._see(self._order, self._what, *values)
        return values
