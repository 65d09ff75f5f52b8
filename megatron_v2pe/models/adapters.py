"""Adapters put on the linears of a model, by name: the one place where LoRA and its kind are applied.

`apply_adapters` asks a function for the adapter of every linear that is a target, after a stage is built and before it
is wrapped for training. Its place in a run is the argument `adapt` of `build.build_model`, called in `train/setup.py`:

    build_model(..., adapt=lambda stage: apply_adapters(stage, targets, make))

What an adapter is, and how it works under tensor parallelism, stands in `linear.py`; LoRA in `lora.py`. Around it:

- Settings: section `adapter` (`train/adapter_settings.py`); which linears and pieces a model has by its Hugging Face
  names: `checkpoint/hf/adapter_rows.py`.
- Checkpoints of a run (`checkpoint/adapters.py`): what learns is stored, with a pointer to the model it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from torch import nn

from megatron_v2pe.models.adapter_targets import TARGETS, is_target, parsed_target
from megatron_v2pe.models.linear import ColumnLinear, LinearAdapter, RowLinear
from megatron_v2pe.parallel.token_draws import TokenDraws

MakeAdapter = Callable[[str, ColumnLinear | RowLinear], LinearAdapter]
"""(name of the linear in the model, the linear) to its adapter."""


def adaptable_linears(model: nn.Module) -> dict[str, ColumnLinear | RowLinear]:
    """Return the linears of a stage that may carry an adapter, by their names in the whole model.

    A pipeline stage counts its layers from 0; the names have the numbers that checkpoints give them.
    """
    found: dict[str, ColumnLinear | RowLinear] = {}
    numbers = {name: cast(int, one.layer_number) - 1 for name, one in model.named_modules() if _is_layer(name, one)}
    for name, module in model.named_modules():
        if isinstance(module, (ColumnLinear, RowLinear)) and name.split(".")[-1] in TARGETS:
            layer = next((one for one in numbers if name.startswith(f"{one}.")), None)
            if layer is not None:
                name = f"{layer.rpartition('.')[0]}.{numbers[layer]}{name[len(layer) :]}"
            found[name] = module
    return found


def _is_layer(name: str, module: nn.Module) -> bool:
    return name.rpartition(".")[2].isdecimal() and hasattr(module, "layer_number")


def apply_adapters(model: nn.Module, targets: Sequence[str], make: MakeAdapter) -> list[str]:
    """Put an adapter on every linear that is a target; every rank calls this with the same targets.

    Args:
        model: this rank's stage (unwrapped), of layer spec `local`: Transformer Engine's linears take no adapters.
        targets: names of `TARGETS`, alone or behind one of `PARTS` and a dot.
        make: makes an adapter.

    Returns:
        The names of the linears that have got one; none of a stage that holds no target.

    Raises:
        ConfigError: a target is unknown; names the nearest.
    """
    for target in targets:
        parsed_target(target)
    linears = adaptable_linears(model)
    found = [name for name in linears if any(is_target(name, target) for target in targets)]
    for name in found:
        attach(linears[name], name, make(name, linears[name]))
    return found


def attach(linear: ColumnLinear | RowLinear, name: str, adapter: LinearAdapter) -> None:
    """Put an adapter on a linear; its name is for the error of a second one."""
    assert linear.linear_adapter is None, f"{name} has an adapter already"
    linear._modules["adapter"] = adapter.to(device=linear.weight.device)
    for parameter_name, parameter in adapter.named_parameters():
        setattr(parameter, "tensor_model_parallel", parameter_name in adapter.sharded_axes)  # noqa: B010


def adapters_of(model: nn.Module) -> Iterator[LinearAdapter]:
    """Yield the adapters of a model, or of a part of it."""
    return (module for module in model.modules() if isinstance(module, LinearAdapter))


def need_draws(model: nn.Module) -> bool:
    """Tell whether an adapter of a model, or of a part of it, draws in training."""
    return any(adapter.needs_draws for adapter in adapters_of(model))


def draw_by(module: nn.Module, draws: TokenDraws | None) -> None:
    """Say by which key the adapters in a module draw, before it runs; None leaves them as they are.

    It has to be said again before a recompute, when other micro-batches have passed.
    """
    if draws is not None:
        for adapter in adapters_of(module):
            adapter.draws = draws
