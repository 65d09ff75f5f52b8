"""The data list (meta JSON): which data sets a run reads, how often, and with which settings.

The format is that of the V2PE data: see `docs/data.md`. Every field has its type or the entry is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.image_operations import ListedOperation, Opening, read_operations
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.media_fields import is_path
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range, typed
from megatron_v2pe.foreign.text import read_json_object

_MOST_REPEATS, _LARGEST_WEIGHT, _MOST_TILES = 1e6, 1e12, 4096
_LONGEST_NAME = 255
_SHOWN = 20
"""Data sets of one data list whose faults are named."""


@dataclass(frozen=True)
class _Entry:
    """An entry of the data list as it is written; `Dataset` says what the fields mean."""

    annotation: str
    data_augment: bool
    repeat_time: Annotated[float, Range(0, _MOST_REPEATS)]
    root: str | None = None
    root2: str | None = None
    http_root: str | None = None
    max_dynamic_patch: Annotated[int, Range(1, _MOST_TILES)] | None = None
    dynamic_image_size: bool | None = None
    transparency: Literal["drop", "white", "black"] = "drop"
    exif_rotation: bool = False
    image_operations: tuple[ListedOperation, ...] = ()
    weight: Annotated[float, Range(0, _LARGEST_WEIGHT)] | None = None
    length: Any = None
    """A note for people; it is compared with nothing."""


_USUAL = {"data_augment": "false", "repeat_time": "1"}
"""Fields that must be given, as in the published code, and what most published lists give."""


def read_data_list(path: str | Path) -> list[Dataset]:
    """Read a data list.

    Raises:
        ConfigError: the file or an annotation file is missing, an entry lacks a field, has an unknown one or one of
            another type; of all entries at once.
    """
    datasets, faults = list[Dataset](), list[ConfigError | DataError]()
    for name, entry in read_entries(path).items():
        try:
            datasets.append(_with_samples(read_entry(name, entry, path), path))
        except (ConfigError, DataError) as error:
            faults.append(error)
    if faults:
        more = f"\n... and {len(faults) - _SHOWN} more data sets" if len(faults) > _SHOWN else ""
        raise type(faults[0])("\n".join(map(str, faults[:_SHOWN])) + more)
    without = [dataset.name for dataset in datasets if dataset.weight is None]
    if without and len(without) < len(datasets):
        raise ConfigError(
            f"{printable(path)}: {', '.join(without)} without a weight, the others have one; give all a weight or none"
        )
    return datasets


def _with_samples(dataset: Dataset, path: str | Path) -> Dataset:
    if not len(dataset):
        raise ConfigError(
            f"{printable(path)}: dataset {dataset.name!r}: {printable(dataset.annotation)} holds no samples"
        )
    return dataset


def read_entries(path: str | Path) -> dict[str, Any]:
    """Read a data list without looking at its entries; their names are safe to print.

    Raises:
        ConfigError: no such file, not an object of entries by name, or a name that stands twice.
    """
    if not os.path.lexists(path):
        where = where_lists_are(Path(path))
        raise ConfigError(f"{printable(path)}: cannot be read: No such file or directory; {where}")
    content = read_json_object(path, ConfigError, unique=True)
    if not content:
        raise ConfigError(f"{printable(path)}: expected an object of datasets by name, found an empty one")
    for name in content:
        if not name.strip() or len(name) > _LONGEST_NAME or printable(name) != name:
            raise ConfigError(
                f"{printable(path)}: dataset '{printable(name)[:80]}': expected a name of 1 to {_LONGEST_NAME} "
                "characters that can be shown"
            )
    return content


def where_lists_are(path: Path) -> str:
    """Return how to get a data list that is not there: the published one lies among the examples."""
    ready = next((Path(__file__).resolve().parents[2] / "examples").glob(f"*/{path.name}"), None)
    if ready is None:
        return "a data list is a JSON file that names annotations, see docs/data.md"
    shown = os.path.relpath(ready) if ready.is_relative_to(os.getcwd()) else str(ready)
    return f"the published list is ready: mkdir -p {printable(path.parent)} && cp {shown} {printable(path.parent)}"


def read_entry(name: str, entry: Any, path: str | Path) -> Dataset:
    """Read one entry of the data list in `path`.

    Raises:
        ConfigError: a field is missing, unknown or wrong, or the annotation file is not there.
    """
    where = f"{printable(path)}: dataset {name!r}"
    try:
        read = typed(_Entry, entry, where, ConfigError, every=True)
    except ConfigError as error:
        usual = [f'"{key}": {value}' for key, value in _USUAL.items() if isinstance(entry, dict) and key not in entry]
        raise ConfigError(f"{error} (most lists say {', '.join(usual)})" if usual else str(error)) from error
    repeat, weight = _share(where, entry)
    shown = printable(read.annotation)
    if not read.annotation.endswith("jsonl"):
        advice = f"; of a JSON list make one: jq -c '.[]' {shown} > OTHER.jsonl" if shown.endswith(".json") else ""
        raise ConfigError(f"{where}: annotation {shown} is not a .jsonl file{advice}")
    for field in ("annotation", "root", "root2", "http_root"):
        if (value := getattr(read, field)) and not is_path(value):
            raise ConfigError(f"{where}: {field} is {ascii(value)[:80]}, which is no path")
    if not Path(read.annotation).exists():
        raise ConfigError(f"{where}: annotation {shown}: no such file (paths are relative to {os.getcwd()})")
    check_regular(read.annotation, ConfigError)
    return Dataset(
        name=name,
        annotation=read.annotation,
        root=_with_slash(read.root or ""),
        root2=_with_slash(read.root2) if read.root2 else None,
        http_root=read.http_root,
        data_augment=read.data_augment,
        repeat_time=repeat,
        weight=weight,
        max_dynamic_patch=read.max_dynamic_patch,
        dynamic_image_size=read.dynamic_image_size,
        transparency=read.transparency,
        exif_rotation=read.exif_rotation,
        image_operations=read_operations(read.image_operations, where),
    )


def read_shares(path: str | Path) -> dict[str, tuple[float, float | None]]:
    """Return `repeat_time` and `weight` of each data set of a data list; its annotations need not be there.

    Raises:
        ConfigError: the list cannot be read, or one of the two is wrong.
    """
    return {name: _share(f"{printable(path)}: dataset {name!r}", entry) for name, entry in read_entries(path).items()}


def read_openings(path: str | Path) -> dict[str, Opening]:
    """Return how the images of each data set of a data list are opened; its annotations need not be there.

    Raises:
        ConfigError: the list cannot be read, or a field of these is wrong.
    """
    openings = dict[str, Opening]()
    for name, entry in read_entries(path).items():
        fields = {key: value for key, value in entry.items() if key in ("transparency", "exif_rotation")}
        openings[name] = typed(Opening, fields, f"{printable(path)}: dataset {name!r}", ConfigError)
    return openings


def read_image_operations(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return the further image operations of each data set of a data list, as `read_operations` does.

    Raises:
        ConfigError: the list cannot be read, or `image_operations` is not a list of operations that are known.
    """
    found = dict[str, tuple[str, ...]]()
    for name, entry in read_entries(path).items():
        where = f"{printable(path)}: dataset {name!r}"
        names = Fields(entry, where, ConfigError).get("image_operations", tuple[ListedOperation, ...], ())
        found[name] = read_operations(names, where)
    return found


def _share(where: str, entry: Any) -> tuple[float, float | None]:
    """Read how often a data set is seen: `repeat_time` and `weight`."""
    fields = Fields(entry, where, ConfigError)
    repeat = fields.number("repeat_time", least=0, most=_MOST_REPEATS)
    weight = fields.number("weight", None, least=0, most=_LARGEST_WEIGHT)
    for name, value in (("repeat_time", repeat), ("weight", weight)):
        if value == 0:
            raise ConfigError(f"{where}: {name} is 0, expected a number above 0")
    return repeat, weight


def _with_slash(root: str) -> str:
    return root if not root or root.endswith(("/", ":")) else root + "/"
