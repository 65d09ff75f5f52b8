"""Which benchmarks there are: families found by folder, the groups and other names they state.

A family is a folder of `families/`, or one from outside (`base.plugins` says how it is found). Its `questions.py` adds

- benchmarks: `@BENCHMARKS.register("docvqa_val", "vqa_docvqa_val")` above a class, where names behind the first are
  other names users may type; `BENCHMARKS.add(name, constructor)` for those that one class makes many of;
- groups, `BENCHMARKS.group("docvqa", "docvqa_val")`: names of benchmarks that are asked together, in this order;
  several families may add to one group;
- other names of a group, `BENCHMARKS.also("mmniah", "mm_niah")`.

Lists have families in the order of `ORDER` of their packages; those that state none come last, in the order found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.benchmark import Benchmark, Mode
from megatron_v2pe.foreign.printable import printable

FAMILIES = "megatron_v2pe.evaluate.families"
"""Package of this project's own families."""
ALL = "all"
"""Group of every benchmark."""
_LAST = 1 << 30
_Class = TypeVar("_Class", bound=type[Benchmark])


class Constructor(Protocol):
    """Makes a benchmark: its class, or a function that knows which of many it is."""

    def __call__(self, *, mode: Mode, cache: Path) -> Benchmark:
        """Return the benchmark; see `Benchmark.__init__`."""
        ...


class BenchmarkRegistry(Registry[Constructor]):
    """Benchmarks by name, with the groups and other names users may type."""

    def __init__(self) -> None:
        """Know no benchmark yet; families are loaded when one is first asked for."""
        super().__init__("benchmark", FAMILIES, "questions")
        self._groups: dict[str, dict[str, None]] = {}
        self._other_names: dict[str, str] = {}

    def register(self, *names: str) -> Callable[[_Class], _Class]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a decorator that adds a class under the first of these names, and sets the class's `name`.

        Args:
            names: the benchmark's name, then other names users may type.
        """

        def decorated(benchmark: _Class) -> _Class:
            benchmark.name = names[0]
            self.add(names[0], benchmark)
            self.also(*names)
            return benchmark

        return decorated

    def add(self, name: str, member: Constructor) -> None:
        """Add what makes a benchmark.

        Raises:
            ConfigError: another one has this name, or it cannot be called.
        """
        if not callable(member):
            raise ConfigError(f"benchmark {printable(name)!r} is {member!r:.100}, expected a class or a function")
        super().add(name, member)

    def group(self, name: str, *benchmarks: str) -> None:
        """Add benchmarks to a group."""
        self._groups.setdefault(name, {}).update(dict.fromkeys(benchmarks))

    def also(self, name: str, *others: str) -> None:
        """State other names of a benchmark or a group.

        Raises:
            ConfigError: one of them stands for another benchmark or group already.
        """
        for other in others:
            if other != other.lower().replace("-", "_"):
                raise ConfigError(f"name {printable(other)!r}: names are compared in small letters, with '_' for '-'")
            if (known := self._other_names.setdefault(other, name)) != name:
                raise ConfigError(f"{printable(other)!r} stands for benchmark {known!r} already; give {name!r} another")

    def _load(self) -> None:
        """Load the families.

        Raises:
            ConfigError: a benchmark has the name of a group or another name of a benchmark, and could not be asked.
        """
        super()._load()
        for name in self._members:
            others = self._groups.get(name, self._other_names.get(name))
            if others is not None and self._is_from_outside(name):
                what = "a group of benchmarks" if name in self._groups else f"another name of {others}"
                raise ConfigError(f"benchmark {printable(name)!r}: {what} is called so already; rename the benchmark")

    def _is_from_outside(self, name: str) -> bool:
        """Tell whether another package than this project's adds the benchmark of this name."""
        return self._package(name).partition(".")[0] != FAMILIES.partition(".")[0]

    def names(self) -> tuple[str, ...]:
        """Return the names of all benchmarks in the order of lists."""
        return tuple(sorted(super().names(), key=self._place))

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the benchmarks of each group; the group of all comes first."""
        self._load()
        members = {name: tuple(sorted(found, key=self._place)) for name, found in self._groups.items()}
        ordered = sorted(members, key=lambda name: min(map(self._place, members[name])))
        return {ALL: self.names(), **{name: members[name] for name in ordered}}

    def other_names(self) -> dict[str, str]:
        """Return the name of a benchmark or group that each other name stands for."""
        self._load()
        return self._other_names

    def __iter__(self) -> Iterator[str]:
        """Iterate over `names`."""
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        """Whether there is a benchmark of this name."""
        return isinstance(name, str) and self.find(name) is not None

    def __len__(self) -> int:
        """Return how many benchmarks there are."""
        return len(self.names())

    def _place(self, name: str) -> int:
        """Return where the family of a benchmark stands in lists."""
        package = sys.modules.get(self._package(name))
        return getattr(package, "ORDER", _LAST)

    def _package(self, name: str) -> str:
        """Return the package of the family that adds a benchmark."""
        constructor = self._members[name]
        function = constructor.func if isinstance(constructor, partial) else constructor
        return getattr(function, "__module__", "").rpartition(".")[0]


BENCHMARKS = BenchmarkRegistry()
"""Every benchmark by name."""
