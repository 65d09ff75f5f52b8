"""The rotary settings of an `llm_config`, in every spelling that transformers has written.

| written by | base | scaling |
|---|---|---|
| transformers up to 4.44, the published code | `rope_theta` | `rope_scaling: {"type": "dynamic", "factor": 2.0}` |
| transformers from 4.45 | `rope_theta` | `rope_scaling: {"rope_type": "dynamic", "type": ..., "factor": 2.0}` |
| transformers 5 | `rope_parameters: {"rope_theta": ..., "rope_type": "dynamic", "factor": 2.0}` | in the same place |
| the published V2PE code | `rope_theta` | `rope_scaling: {"type": "v2pe", "factor": 1.0}`: none |

Several may stand in one file; where two state one thing they have to agree. Whatever else stands in these objects (the
numbers of `yarn`, `llama3` or `longrope`, one set of parameters per kind of layer) is not computed, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range
from megatron_v2pe.foreign.text import kind_of

PUBLISHED_BASE = 10000.0
"""What the published class takes where nothing states `rope_theta`."""
PLACES = ("rope_scaling", "rope_parameters")
_KINDS = ("none", "default", "dynamic", "linear", "v2pe")
_SCALED = ("dynamic", "linear")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary settings of the language model as the checkpoint states them."""

    base: float
    scaling_type: str
    """`none`, `dynamic` (NTK) or `linear`; `v2pe` in a checkpoint is read as `none`."""
    scaling_factor: float


def rope_config(section: Fields, max_positions: int) -> RopeConfig:
    """Read the rotary settings.

    Args:
        section: the `llm_config`.
        max_positions: its `max_position_embeddings`, from which dynamic scaling sets in.

    Raises:
        V2PEError: of the section's class: two places disagree, a scaling without its factor or of a kind that is not
            computed, or a field that is none of base, kind and factor; names the field.
    """
    places = []
    for name in PLACES:
        content = section.get(name, dict, None)
        if content:
            places.append(Fields(content, f"{section.source}: {name}", section.error))
    for place in places:
        _check_rest(place, max_positions)
    base = _agreed([section, *places], ("rope_theta",), Annotated[float, Range(1, 1e15)])
    kind = _agreed(places, ("rope_type", "type"), str)
    factor = _agreed(places, ("factor",), Annotated[float, Range(0, 1e6)])
    if base is None:
        if "rope_theta" in section.content:
            raise section.error(f"{section.source}: rope_theta: found null, and nothing else states the base; state it")
        base = PUBLISHED_BASE
    if kind is None and factor is not None:
        raise section.error(
            f"{section.source}: rope_scaling has factor {factor} and no type; expected dynamic or linear"
        )
    if kind in _SCALED:
        if factor is None:
            raise section.error(f"{section.source}: rope_scaling of type {kind}: field 'factor' is missing")
        if factor < 1.0:
            raise section.error(f"{section.source}: rope_scaling factor {factor} is below 1")
        return RopeConfig(base, str(kind), factor)
    if kind != "v2pe" and factor not in (None, 1.0):
        raise section.error(f"{section.source}: rope_scaling of type default: found factor {factor}, which it has not")
    return RopeConfig(base, "none", 1.0)


def _check_rest(place: Fields, max_positions: int) -> None:
    """Check the kind of a place and what else stands in it."""
    shown_kinds = "none of dynamic, linear, v2pe, default"
    for name in ("rope_type", "type"):
        kind = place.text(name, None)
        if kind is not None and kind not in _KINDS:
            raise place.error(f"{place.source}: {name} {printable(kind)[:80]!r} is {shown_kinds}: it is not computed")
    for name, value in place.content.items():
        shown = printable(name)[:80]
        if name in ("rope_theta", "rope_type", "type", "factor") or value is None or value is False:
            continue
        if isinstance(value, dict):
            raise place.error(
                f"{place.source}: {shown}: found an object; one set of parameters per kind of layer is not computed, "
                "all layers share one"
            )
        same = {"partial_rotary_factor": 1, "attention_factor": 1, "original_max_position_embeddings": max_positions}
        if name in same and value == same[name] and not isinstance(value, bool):
            continue
        found = printable(repr(value)[:40]) if isinstance(value, (int, float, str)) else kind_of(value)
        expected = f" (computed is {same[name]})" if name in same else ""
        raise place.error(f"{place.source}: {shown}: found {found}, which is not computed{expected}")


def _agreed(places: list[Fields], names: tuple[str, ...], kind: Any) -> Any:
    """Return what several places state about one thing, None where none does; `none` and `default` are one kind."""
    stated = [(f"{place.source}: {name}", value) for place in places for name in names
              if (value := place.get(name, kind, None)) is not None]  # fmt: skip
    plain = ("none", "default")
    for where, value in stated[1:]:
        first = stated[0][1]
        if value != first and not (value in plain and first in plain):
            of_5_0 = ""
            if names == ("rope_theta",) and PUBLISHED_BASE in (value, first):
                of_5_0 = f" (transformers 5.0 fills in {PUBLISHED_BASE:.0f} of its own: remove that one)"
            raise places[0].error(
                f"{where}: found {printable(value)!r}, but {stated[0][0]} is {printable(first)!r}; make them "
                f"agree{of_5_0}"
            )
    return stated[0][1] if stated else None
