"""Families are folders: where they are found, and a registry that each of their files adds itself to.

A family is a package with files of agreed names. A language model has `config.py`, `hf_table.py` and so on, a benchmark
`questions.py` and `scorer.py`. Those of this project lie in a package of ours. Further ones come from

- an installed package that states an entry point of the group `megatron_v2pe.plugins` (its value is the family's
  package), or
- `MEGATRON_V2PE_PLUGINS` in the environment: folders, divided as `PATH` is, each of them one family. Every process of a
  run inherits it. Their code is run as it is, so name only folders whose code you trust.

A `Registry` loads of every family the one file it needs, when it is first asked. Reading a template imports no
Megatron-Core, and no line of ours names a family. A folder may have any of these files:

| file | what it adds | registry |
|---|---|---|
| `config.py` | a language model or a vision tower | `LANGUAGE_MODELS`, `VISION_TOWERS` in `models/config_sections.py` |
| `hf_table.py` | its tensors | `LANGUAGE_TABLES`, `TOWER_TABLES` in `checkpoint/hf/table.py` |
| `config.py` | its class in transformers' native layout | `NATIVE_TEXTS` in `models/native_texts.py` |
| `hf_table.py` | its native names | `NATIVE_NAMES` in `checkpoint/hf/native_table.py` |
| `layers.py` | layers of its own | `DECODERS` in `models/language_model.py` |
| `tower.py` | a vision tower's modules | `TOWERS` in `models/vision_tower.py` |
| `template.py` | a conversation template | `TEMPLATES` in `data/conversation.py` |
| `questions.py` | a benchmark | `BENCHMARKS` in `evaluate/benchmark_registry.py` |
| `scorer.py` | its scorers | none: `evaluate/scorer_names.py` imports the files |
| `synthetic.py` | a made-up set of it | `SETS` in `workshop/synthetic/benchmarks.py` |
| `loss_weights.py` | a weighting of the loss | `LOSS_REDUCTIONS` in `data/loss_weights.py` |
| `image_operations.py` | changes of an image | `IMAGE_OPERATIONS` in `data/image_operations.py` |
| `optimizer.py`, `schedule.py` | how weights change | `OPTIMIZERS`, `SCHEDULES` in `train/optimizers/settings.py` |
| `writer.py` | a log writer | `WRITERS` in `train/writers.py` |
| `attention_backend.py` | attention kernels | `ATTENTION_BACKENDS` in `parallel/attention/attention_backend.py` |
| `context_parallel.py` | an exchange | `CONTEXT_PARALLEL` in `parallel/attention/context_parallel.py` |
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from keyword import iskeyword
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Generic, TypeVar, cast

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable

GROUP = "megatron_v2pe.plugins"
"""Entry points of installed packages that are families."""
VARIABLE = "MEGATRON_V2PE_PLUGINS"
"""Environment variable with folders that are families."""
FAMILIES = "megatron_v2pe.families"
"""Package in which this project's own language models, vision towers and conversation templates lie."""
Member = TypeVar("Member")
Added = TypeVar("Added")


class Registry(Generic[Member]):
    """Members by name, which files of the families add.

    Example: `TEMPLATES = Registry("conversation template", FAMILIES, "template")`. A family's `template.py` then says
    `TEMPLATES.add("my-chat", Template(...))`; a class or a function is added by `@TEMPLATES.register("my-chat")`.
    Iteration over a registry gives the names of its members, and `in` looks for a name.
    """

    def __init__(self, what: str, builtin: str, part: str, one_file_each: bool = False) -> None:
        """Describe a registry.

        Args:
            what: a member, in words, for messages.
            builtin: where this project's own members come from: a package whose folders are families; or one module
                that adds all of them, often the one that makes the registry (`__name__`).
            part: name of the file of a family, without `.py`, that adds members.
            one_file_each: in `builtin`, every file adds members, and folders are not looked at.
        """
        self._what, self._builtin, self._part, self._one_file_each = what, builtin, part, one_file_each
        self._members: dict[str, Member] = {}
        self._loaded: str | None = None
        """The value that `VARIABLE` had when the families were loaded; None: they were not loaded yet."""

    def add(self, name: str, member: Member) -> None:
        """Add a member.

        Raises:
            ConfigError: another one has this name.
        """
        if self._members.setdefault(name, member) is not member:
            raise ConfigError(f"{self._what} {printable(name)!r} stands in two families; rename one of them")

    def register(self, *names: str) -> Callable[[Added], Added]:
        """Return a decorator that adds a class or a function under these names, and leaves it as it is."""

        def decorated(member: Added) -> Added:
            for name in names:
                self.add(name, cast(Any, member))
            return member

        return decorated

    def names(self) -> tuple[str, ...]:
        """Return the names of all members, in the order of their families."""
        self._load()
        return tuple(self._members)

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names of all members, in the order of their families."""
        return iter(self.names())

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        """Tell whether a member has this name."""
        return name in self.names()

    def __getitem__(self, name: str) -> Member:
        """Return the member of this name; see `get`."""
        return self.get(name)

    def find(self, name: str) -> Member | None:
        """Return the member of this name, None where there is none."""
        self._load()
        return self._members.get(name)

    def get(self, name: str) -> Member:
        """Return the member of this name.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        if (member := self.find(name)) is None:
            raise ConfigError(f"no {self._what} {printable(name)[:100]!r}{did_you_mean(name, self.names())}")
        return member

    def _load(self) -> None:
        folders = os.environ.get(VARIABLE, "")
        if self._loaded == folders:
            return
        self._loaded = folders  # first: a family's file may ask the registry itself
        try:
            family_modules(self._builtin, self._part, self._one_file_each)
        except BaseException:
            self._loaded = None  # so that the next one who asks gets the error too
            raise


def family_modules(builtin: str, part: str, one_file_each: bool = False) -> list[ModuleType]:
    """Import one file of every family that has it.

    Args:
        builtin: package in which this project's own families lie; or a module, which is then all of them.
        part: name of the file, without `.py`.
        one_file_each: import every file of that package; its folders are no families.

    Raises:
        ConfigError: a folder or an entry point that is named is no family, or its code fails.
    """
    own = importlib.import_module(builtin)
    inside = [module for module in pkgutil.iter_modules(getattr(own, "__path__", ())) if module.ispkg != one_file_each]
    members = [f"{builtin}.{module.name}" for module in inside]
    files = [importlib.import_module(name) for name in members] if one_file_each else []
    names = [] if one_file_each else members
    return files + [
        module
        for package in (*names, *_installed(), *_named(os.environ.get(VARIABLE, "")))
        if (module := _part(package, part, package in names)) is not None
    ]


def _part(package: str, part: str, is_ours: bool) -> ModuleType | None:
    name = f"{package}.{part}"
    try:
        return importlib.import_module(name) if importlib.util.find_spec(name) is not None else None
    except (Exception, SystemExit) as error:  # anything: it is code of somebody else's
        if is_ours:
            raise
        raise ConfigError(f"family {package}: {part}.py fails: {_what_failed(package, error)}") from error


def _what_failed(package: str, error: BaseException) -> str:
    """Return an error in words, with the file and the line of the family that raised it."""
    loaded = sys.modules.get(package)
    folder = Path(getattr(loaded, "__file__", None) or package).parent
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}" if error.filename and error.lineno else str(folder)
    else:
        frames = [
            (code.co_filename, line) for code, line in _frames(error) if Path(code.co_filename).is_relative_to(folder)
        ]
        place = f"{frames[-1][0]}:{frames[-1][1]}" if frames else str(folder)
    return f"{type(error).__name__}: {printable(error)}, at {printable(place)}"


def _frames(error: BaseException) -> Iterator[tuple[CodeType, int]]:
    """Yield the code and the line of every frame that an error came through, the innermost last."""
    return ((frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__))


@cache
def _installed() -> tuple[str, ...]:
    """Return the packages installed families state."""
    return tuple(point.value for point in entry_points(group=GROUP))


@cache
def _named(folders: str) -> tuple[str, ...]:
    """Make the folders of the environment variable importable; return the names of their packages."""
    return tuple(_package(Path(folder)) for folder in folders.split(os.pathsep) if folder)


def _package(folder: Path) -> str:
    """Make a folder importable under its own name.

    Raises:
        ConfigError: it is no folder with an `__init__.py`, or its name is taken.
    """
    folder = folder.resolve()
    name, start = folder.name, folder / "__init__.py"
    if not start.is_file():
        found = "" if folder.is_dir() else "; there is no such folder"
        raise ConfigError(f"{VARIABLE}: {printable(folder)}: no folder of a family, which holds an __init__.py{found}")
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(start):
        return name
    if not name.isidentifier() or iskeyword(name):
        usable = re.sub(r"[^0-9A-Za-z_]", "_", name)
        raise ConfigError(
            f"{VARIABLE}: {printable(folder)}: a folder of this name cannot be imported; use letters, digits "
            f"and underscores, such as {usable!r}"
        )
    taken = importlib.util.find_spec(name) if loaded is None else loaded.__spec__
    if loaded is not None or taken is not None:
        place = f" ({printable(taken.origin)})" if taken is not None and taken.origin is not None else ""
        raise ConfigError(
            f"{VARIABLE}: {printable(folder)}: a package named {name} is there already{place}; rename the folder"
        )
    spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"{printable(start)}: {type(error).__name__}: {printable(error)}") from error
    return name
