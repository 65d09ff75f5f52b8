"""Adapters put on the linears of a model, by name: the one place where LoRA and its kind are applied.

`apply_adapters` asks a function for the adapter of every linear that is a target, after a stage is built and before it
is wrapped for training. Its place in a run is the argument `adapt` of `build.build_model`, called in `train/setup.py`:

    build_model(..., adapt=lambda stage: apply_adapters(stage, ("attention", "mlp"), make_low_rank))

What an adapter is, and how it works under tensor parallelism, stands in `linear.py`. What there is today:

- Training: no setting asks for adapters. It would be a section of `train/config.py` beside `model`; the published
  flags `--use_llm_lora` and `--use_backbone_lora` are refused in `train/published_table.py`.
- Saving and loading (`checkpoint/store.py`): adapters are stored beside their linears and loaded again. A model
  without adapters refuses a folder that holds some.
- Export (`checkpoint/hf/mcore_to_hf.py`): refused, since the table has no row for an adapter's tensors.
- A Hugging Face folder with `adapter_config.json`: refused in `checkpoint/hf/folder.py`, it has to be merged first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.linear import ColumnLinear, LinearAdapter, RowLinear

TARGETS = {
    "attention": ("linear_qkv", "linear_proj"),
    "mlp": ("linear_fc1", "linear_fc2"),
    "linear_qkv": ("linear_qkv",),
    "linear_proj": ("linear_proj",),
    "linear_fc1": ("linear_fc1",),
    "linear_fc2": ("linear_fc2",),
}
"""Groups of linears, and single ones, by the name a target has -> the attributes they are."""
PARTS = ("language_model", "vision_model", "vision_projection")
"""Parts of a model, one of which may stand before a target: `language_model.attention`."""

MakeAdapter = Callable[[str, ColumnLinear | RowLinear], LinearAdapter]
"""(name of the linear in the model, the linear) to its adapter."""


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
    wanted = [_parsed(target) for target in targets]
    linears = {name: module for name, module in model.named_modules() if isinstance(module, (ColumnLinear, RowLinear))}
    found = [
        name
        for name in linears
        if any(name.split(".")[-1] in attributes and part in ("", name.split(".")[0]) for part, attributes in wanted)
    ]
    for name in found:
        linear = linears[name]
        assert linear.linear_adapter is None, f"{name} has an adapter already"
        adapter = make(name, linear).to(device=linear.weight.device)
        linear._modules["adapter"] = adapter
        for parameter_name, parameter in adapter.named_parameters():
            setattr(parameter, "tensor_model_parallel", parameter_name in adapter.sharded_axes)  # noqa: B010
    return found


def _parsed(target: str) -> tuple[str, tuple[str, ...]]:
    """Return the part of the model, empty for all, and the attributes a target names."""
    part, _, name = target.rpartition(".")
    if name not in TARGETS or part not in ("", *PARTS):
        known = [*TARGETS, *(f"{one}.{group}" for one in PARTS for group in TARGETS)]
        raise ConfigError(f"adapter target {printable(target)[:100]!r} is unknown{did_you_mean(target, known)}")
    return part, TARGETS[name]
