"""Several adapters on one loaded base, by name; which of them answers is chosen between questions.

A linear's product has the chosen adapter's added while it runs, in float32. Nothing is merged: the base stays as it is,
an adapter takes the memory of its own factors, and a change of adapters costs no more than forgetting image features
(where the tower or the projector have one) and captured steps. The price is two small products in every adapted linear.

Tensors that stand whole in an adapter, such as a projector trained in full, and rows of new tokens are kept twice, and
copied into the model when another adapter is chosen. The base has the new tokens too, with rows as they begin.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.checkpoint.hf.mappings import TensorMapping
from megatron_v2pe.checkpoint.hf.table import MappingTable
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows
from megatron_v2pe.checkpoint.parts import HeldPart, held_parts, rows_and_columns
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.linear import ColumnLinear, LinearAdapter, RowLinear

BASE = "none"
"""Name of the base without any adapter."""
_ADAPTED = re.compile(r"\.linear_(qkv|proj|fc1|fc2)\.weight$")
_ROWS_AT_ONCE = 1 << 24
"""Numbers of a float32 copy of the input or the product, at most."""


class ChosenAdapter(LinearAdapter):
    """What one linear has of several adapters."""

    def __init__(self, tp_group: Any) -> None:
        """Hold none."""
        super().__init__(tp_group)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        """Name -> `down` [rank, in] and `up` [out, rank] with the scaling in it, this rank's parts, float32."""
        self.chosen: str | None = None

    def forward(self, states: Tensor, product: Tensor) -> Tensor:
        """Return `product` with the chosen adapter's added; see `LinearAdapter.forward`."""
        found = self.factors.get(self.chosen or "")
        if found is None:
            return product
        down, up = found
        rows, result = states.flatten(0, -2), product.flatten(0, -2).clone()
        step = max(1, _ROWS_AT_ONCE // max(rows.shape[1], result.shape[1]))
        for part, target in zip(rows.split(step), result.split(step), strict=True):
            target += (part.to(down.dtype) @ down.t()) @ up.t()
        return result.view(product.shape)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight with the chosen adapter in it."""
        found = self.factors.get(self.chosen or "")
        if found is None:
            return weight
        down, up = found
        return (weight.detach().to(down.dtype) + up @ down).to(weight.dtype)


class NamedAdapters:
    """The adapters of a model, of which one or none is chosen."""

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
        """Put adapters on the linears of this rank's stage; none is chosen yet.

        Args:
            model: the stage, its weights loaded, of layer spec `local`.
            adapters: by name, of this model's shapes, none of them called as the base.

        Raises:
            ConfigError: an adapter changes something that can only be merged.
        """
        self.names = tuple(adapters)
        self.chosen: str | None = None
        self.of_tower = False
        """Whether image features depend on the adapter."""
        self._on: list[ChosenAdapter] = []
        self._whole: dict[str | None, list[tuple[HeldPart, Tensor]]] = {}
        self._rows: dict[str | None, list[tuple[Tensor, Tensor, Tensor]]] = {}
        """Adapter, or None for the base -> part of a table, which of its rows, and what they are."""
        stated = {name: _by_key(adapter, name) for name, adapter in adapters.items()}
        linears = {
            f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, (ColumnLinear, RowLinear))
        }
        for name, parts in held_parts(model):
            key = parts[0].key if parts else ""
            for own, adapter in stated.items():
                if key in adapter.changes or key in adapter.whole:
                    self.of_tower |= not key.startswith("language_model.")
                if key in adapter.changes:
                    self._add(linears[name], own, adapter, parts)
                if key in adapter.whole:
                    self._keep(own, adapter.whole[key], parts)
                if adapter.rows is not None and key in adapter.rows.tables:
                    self._keep_rows(own, adapter.rows, key, parts)

    def choose(self, name: str | None) -> bool:
        """Choose an adapter by name; `none`, or None, is the base.

        Returns:
            Whether another one was chosen before.

        Raises:
            ConfigError: there is none of this name; says which there are.
        """
        check_asked(name, self.names, "adapter")
        wanted = None if name == BASE else name
        if wanted == self.chosen:
            return False
        for chosen in (None, wanted):  # rows of one adapter may lie in a table that another has whole
            for part, values in self._whole.get(chosen, ()):
                part.put(values)
            for table, at, rows in self._rows.get(chosen, ()):
                table[at] = rows
        self.chosen = wanted
        for adapter in self._on:
            adapter.chosen = wanted
        return True

    @property
    def replaces(self) -> bool:
        """Whether an adapter has tensors in place of the base's."""
        return bool(self._whole or self._rows)

    def _add(self, linear: ColumnLinear | RowLinear, name: str, adapter: Adapter, parts: Sequence[HeldPart]) -> None:
        """Give a linear its part of an adapter."""
        carried = linear.linear_adapter
        if carried is None:
            carried = ChosenAdapter(linear.tp_group)
            linear._modules["adapter"] = carried
            self._on.append(carried)
        assert isinstance(carried, ChosenAdapter), "a model that is trained with an adapter takes no other"
        change, weight = adapter.changes[parts[0].key], linear.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        down, up = change.down.to(kind), change.up.to(kind) * change.scaling
        rows, columns = rows_and_columns(weight.detach(), list(parts), (up.shape[0], down.shape[1]))
        mine_down, mine_up = down[:, columns.clamp(min=0)], up[rows.clamp(min=0)]
        mine_down[:, columns < 0] = 0
        mine_up[rows < 0] = 0
        carried.factors[name] = (mine_down.to(weight.device), mine_up.contiguous().to(weight.device))

    def _keep(self, name: str, values: Tensor, parts: Sequence[HeldPart]) -> None:
        """Keep a tensor of an adapter, and the base's in whose place it stands."""
        known = {part.view.data_ptr() for part, _ in self._whole.get(None, ())}
        for part in parts:
            shape = tuple(values.shape)
            if part.view.data_ptr() not in known:
                kept = part.view.clone()
                self._whole.setdefault(None, []).append((HeldPart(part.key, part.view, (0,) * kept.dim()), kept))
            window = values[part.window(shape)].to(part.view.dtype)
            place = part.view[tuple(slice(0, size) for size in window.shape)]  # tokens of others may lie behind
            self._whole.setdefault(name, []).append((HeldPart(part.key, place, (0,) * window.dim()), window))

    def _keep_rows(self, name: str, rows: TokenRows, key: str, parts: Sequence[HeldPart]) -> None:
        """Keep rows of a table of an adapter, and the base's in whose place they stand."""
        for part in parts:
            at, values = rows.part(key, part.begin[0], part.view.shape[0])
            at, values = at.to(part.view.device), values.to(part.view.device, part.view.dtype)
            self._rows.setdefault(None, []).append((part.view, at, part.view[at].clone()))
            self._rows.setdefault(name, []).append((part.view, at, values))


def _by_key(adapter: Adapter, name: str) -> Adapter:
    """Return an adapter with one change for each Megatron-Core tensor, by its key."""
    rows = {row.key: TensorMapping(row.key, row.key_shape, row.key) for row in adapter.table.tensors}
    stated = adapter.named(MappingTable(tuple(rows.values())))
    if other := next((key for key in stated.changes if not _ADAPTED.search(key)), None):
        raise ConfigError(
            f"--adapter {name}: it changes {other}, which takes no adapter while it runs: merge it into its base "
            "(tools/merge_adapter.py BASE ADAPTER OUT), and ask that"
        )
    return stated


def check_asked(name: str | None, there: Collection[str], said: str) -> None:
    """Refuse the name of an adapter that is not loaded.

    Args:
        name: None: no name was given.
        there: names of those that are.
        said: who has named it, for the error.

    Raises:
        ConfigError: it is not among them; says which are.
    """
    if name in (None, BASE) or name in there:
        return
    shown, nearest = printable(name)[:80], did_you_mean(str(name), [*there, BASE])
    raise ConfigError(f"{printable(said)[:80]}: no adapter {shown!r} is loaded (--adapter [NAME=]FOLDER){nearest}")


def check_names(names: Sequence[str]) -> None:
    """Refuse names of adapters that mean two things.

    Raises:
        ConfigError: a name stands twice, or is that of the base.
    """
    for name in names:
        if name == BASE:
            raise ConfigError(f"--adapter {BASE}=...: {BASE!r} is the base without an adapter; choose another name")
        if names.count(name) > 1:
            raise ConfigError(
                f"--adapter: two adapters are called {printable(name)!r}; give each a name of its own, NAME=FOLDER"
            )
