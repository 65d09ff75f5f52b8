"""The rotary settings of an `llm_config`, in every spelling that transformers has written.

| written by | base | scaling |
|---|---|---|
| transformers up to 4.44, the published code | `rope_theta` | `rope_scaling: {"type": "dynamic", "factor": 2.0}` |
| transformers from 4.45 | `rope_theta` | `rope_scaling: {"rope_type": "dynamic", "type": ..., "factor": 2.0}` |
| transformers 5 | `rope_parameters: {"rope_theta": ..., "rope_type": "dynamic", "factor": 2.0}` | in the same place |
| the published V2PE code | `rope_theta` | `rope_scaling: {"type": "v2pe", "factor": 1.0}`: none |

Several may stand in one file; where two state one thing they have to agree. The kinds are those of
`v2pe/rope_scaling.py`, and `su` is an older name of `longrope`. The length before the scaling
(`original_max_position_embeddings`) may stand in the section or beside the kind; where it stands nowhere it is
`max_position_embeddings`. What else stands in these objects (numbers of another kind, one set of parameters per kind
of layer) is not computed, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range
from megatron_v2pe.foreign.text import kind_of
from megatron_v2pe.v2pe.rope_scaling import (
    SCALINGS,
    NoScaling,
    RopeScaling,
)

PUBLISHED_BASE = 10000.0
"""What the published class takes where nothing states `rope_theta`."""
PLACES = ("rope_scaling", "rope_parameters")
"""Fields of an `llm_config` that may state a scaling."""
ORIGINAL = "original_max_position_embeddings"
"""Field with the length that a model was trained for before its scaling, in the section or beside the kind."""
WITH_ORIGINAL = ("llama3", "yarn", "longrope")
"""The kinds that look at it."""
_PLAIN = ("none", "default", "v2pe")
_SAME_KIND = {"default": "none", "su": "longrope"}
"""Other names of kinds; `v2pe` is none, but its factor says nothing."""
_NUMBER = Annotated[float, Range(0, 1e6)]
_FIELDS: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": _NUMBER},
    "linear": {"factor": _NUMBER},
    "llama3": {"factor": _NUMBER, "low_freq_factor": _NUMBER, "high_freq_factor": _NUMBER},
    "yarn": {"factor": _NUMBER},
    "longrope": {"short_factor": tuple[_NUMBER, ...], "long_factor": tuple[_NUMBER, ...]},
}
"""The fields that a kind has to have, with their types."""
_OPTIONAL: dict[str, dict[str, Any]] = {
    "yarn": {
        "beta_fast": _NUMBER,
        "beta_slow": _NUMBER,
        "truncate": bool,
        "mscale": _NUMBER,
        "mscale_all_dim": _NUMBER,
        "attention_factor": _NUMBER,
    },
    "longrope": {"factor": _NUMBER, "attention_factor": _NUMBER},
}
"""The fields that a kind may have beside those."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary settings of the language model as the checkpoint states them."""

    base: float
    scaling: RopeScaling = field(default_factory=NoScaling)
    """`v2pe` in a checkpoint is read as none."""


def rope_config(section: Fields, max_positions: int, head_dim: int) -> RopeConfig:
    """Read the rotary settings.

    Args:
        section: the `llm_config`.
        max_positions: its `max_position_embeddings`, from which dynamic scaling sets in.
        head_dim: width of an attention head; `longrope` has a number for each of its pairs.

    Raises:
        V2PEError: of the section's class: two places disagree, a field of the scaling is missing or out of range, or
            something is asked for that is not computed; names the field.
    """
    places = []
    for name in PLACES:
        content = section.get(name, dict, None)
        if content:
            places.append(Fields(content, f"{section.source}: {name}", section.error))
    for place in places:
        _check_kind(place)
    kind = _agreed(places, ("rope_type", "type"), str)
    kind = _SAME_KIND.get(kind, kind) or "none"
    if kind in _PLAIN and not _stated(places, ("rope_type", "type"), str):
        factor = _agreed(places, ("factor",), _NUMBER)
        if factor is not None:
            raise section.error(f"{section.source}: rope_scaling has factor {factor} and no type; expected {_kinds()}")
    for place in places:
        _check_rest(place, kind, max_positions)
    base = _agreed([section, *places], ("rope_theta",), Annotated[float, Range(1, 1e15)])
    if base is None:
        if "rope_theta" in section.content:
            raise section.error(f"{section.source}: rope_theta: found null, and nothing else states the base; state it")
        base = PUBLISHED_BASE
    if kind not in _PLAIN:
        numbers = _numbers(section, places, kind, max_positions)
        if kind == "yarn" and base <= 1:
            raise section.error(f"{section.source}: rope_theta is {base}, with which yarn cannot be computed")
        if kind == "dynamic" and head_dim == 2:
            raise section.error(f"{section.source}: rope_scaling of type dynamic needs heads wider than 2")
        for name in ("short_factor", "long_factor"):
            if name in numbers and len(numbers[name]) != head_dim // 2:
                raise section.error(
                    f"{section.source}: rope_scaling: {name} has {len(numbers[name])} numbers, heads of width "
                    f"{head_dim} have {head_dim // 2} pairs; expected a number for each"
                )
        try:
            return RopeConfig(base, SCALINGS[kind](**numbers))
        except ConfigError as error:
            raise section.error(f"{section.source}: {error}") from error
    factor = _agreed(places, ("factor",), _NUMBER)
    if kind != "v2pe" and factor not in (None, 1.0):
        raise section.error(f"{section.source}: rope_scaling of type default: found factor {factor}, which it has not")
    return RopeConfig(base)


def _numbers(section: Fields, places: list[Fields], kind: str, max_positions: int) -> dict[str, Any]:
    """Return the numbers of a scaling, by the names that its class gives them."""
    numbers: dict[str, Any] = {}
    for name, of_type in {**_FIELDS[kind], **_OPTIONAL.get(kind, {})}.items():
        value = _agreed(places, (name,), of_type)
        if value is None and name in _FIELDS[kind]:
            raise section.error(f"{section.source}: rope_scaling of type {kind}: field {name!r} is missing")
        if value is not None:
            numbers["stated_attention_factor" if name == "attention_factor" else name] = value
    if numbers.get("factor", 1.0) < 1.0:
        raise section.error(f"{section.source}: rope_scaling factor {numbers['factor']} is below 1")
    if kind == "dynamic":
        numbers["trained_positions"] = max_positions
    elif kind in WITH_ORIGINAL:
        original = _agreed([section, *places], (ORIGINAL,), Annotated[int, Range(1, 1 << 30)])
        if original is None and kind == "longrope":
            raise section.error(f"{section.source}: rope_scaling of type longrope: field {ORIGINAL!r} is missing")
        numbers["trained_positions"] = max_positions if original is None else original
    if kind == "longrope":
        numbers.setdefault("factor", max_positions / numbers["trained_positions"])
    return numbers


def _kinds() -> str:
    """Return the kinds that are computed, in words."""
    return ", ".join(kind for kind in SCALINGS if kind not in _PLAIN)


def _check_kind(place: Fields) -> None:
    """Check that the kind of a place is one that is computed."""
    for name in ("rope_type", "type"):
        kind = place.text(name, None)
        if kind is not None and kind not in (*_PLAIN, *SCALINGS, *_SAME_KIND):
            raise place.error(
                f"{place.source}: {name} {printable(kind)[:80]!r} is none of {_kinds()}, v2pe, default: it is not "
                "computed"
            )
    for name, value in place.content.items():
        if isinstance(value, Mapping):
            raise place.error(
                f"{place.source}: {printable(name)[:80]}: found an object; one set of parameters per kind of layer is "
                "not computed, all layers share one"
            )


def _check_rest(place: Fields, kind: str, max_positions: int) -> None:
    """Check what else stands in a place than the numbers of its kind."""
    own = {**_FIELDS.get(kind, {}), **_OPTIONAL.get(kind, {})}
    if kind in WITH_ORIGINAL:
        own[ORIGINAL] = int
    for name, value in place.content.items():
        if name in ("rope_theta", "rope_type", "type", "factor") or name in own or value is None or value is False:
            continue
        same = {"partial_rotary_factor": 1, "attention_factor": 1, ORIGINAL: max_positions}
        if name in same and value == same[name] and not isinstance(value, bool):
            continue
        found = printable(repr(value)[:40]) if isinstance(value, (int, float, str)) else kind_of(value)
        expected = f" (computed is {same[name]})" if name in same else ""
        of_kind = "" if kind in _PLAIN else f" with {kind}"
        raise place.error(
            f"{place.source}: {printable(name)[:80]}: found {found}, which is not computed{of_kind}{expected}"
        )


def _stated(places: list[Fields], names: tuple[str, ...], kind: Any) -> list[tuple[str, Any]]:
    """Return where places state one thing, with the values."""
    return [(f"{place.source}: {name}", value) for place in places for name in names
            if (value := place.get(name, kind, None)) is not None]  # fmt: skip


def _agreed(places: list[Fields], names: tuple[str, ...], kind: Any) -> Any:
    """Return what several places state about one thing, None where none does; kinds may have two names."""
    stated = _stated(places, names, kind)
    for where, value in stated[1:]:
        first = stated[0][1]
        if value != first and not (kind is str and _SAME_KIND.get(value, value) == _SAME_KIND.get(first, first)):
            of_5_0 = ""
            if names == ("rope_theta",) and PUBLISHED_BASE in (value, first):
                of_5_0 = f" (transformers 5.0 fills in {PUBLISHED_BASE:.0f} of its own: remove that one)"
            raise places[0].error(
                f"{where}: found {printable(value)[:80]!r}, but {stated[0][0]} is {printable(first)[:80]!r}; make "
                f"them agree{of_5_0}"
            )
    return stated[0][1] if stated else None
