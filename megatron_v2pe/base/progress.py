"""How far a long piece of work is: a bar on a terminal, else a plain line from time to time, never both.

A bar in a log file is one line of thousands of carriage returns. The functions take those arguments of `tqdm` that
the project uses.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
_SOON, _LATER = 10.0, 60.0
"""Seconds between lines: in the first minute, and after ten."""


class Progress(Protocol):
    """What a bar and plain lines have in common."""

    n: Any
    """Units done."""
    total: Any
    """Units to be done, None where that is not known."""

    def __enter__(self) -> Any:
        """Return this."""
        ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        """Close the progress."""
        ...

    def update(self, n: float = 1) -> Any:
        """Count `n` as done."""
        ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> Any:
        """Show `s` behind the numbers from now on; `refresh`: at once, on a bar."""
        ...

    def close(self) -> Any:
        """Show how far the work came."""
        ...


def on_terminal() -> bool:
    """Tell whether standard error is a terminal that a bar can be drawn on: one without a size shows none of it."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # nothing that has a size
        return True


def progress_bar(
    *,
    total: float | None,
    desc: str,
    unit: str,
    initial: float = 0,
    unit_scale: bool = False,
    unit_divisor: int = 1000,
    delay: float = 0.0,
    smoothing: float = 0.3,
    disable: bool = False,
) -> Progress:
    """Return what shows progress on standard error; use as a context manager, or close it.

    Args:
        total: what there is to do; None: not known.
        desc: what is done.
        unit: of `total`, in the plural; `B` for bytes.
        initial: done before.
        unit_scale: show numbers with k, M, G.
        unit_divisor: 1024 for bytes.
        delay: seconds before anything is shown; work that takes less shows nothing.
        smoothing: of the bar's rate.
        disable: show nothing, as on ranks other than the first.
    """
    if disable or not on_terminal():
        return ProgressLines(
            total, desc, unit.strip(), initial, unit_divisor if unit_scale else None, delay, silent=disable
        )
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=desc,
        unit=unit if unit == "B" else f" {unit.strip()}",
        initial=initial,
        unit_scale=unit_scale,
        unit_divisor=unit_divisor,
        delay=delay,
        smoothing=smoothing,
        dynamic_ncols=True,
    )


def byte_progress(total: int, what: str) -> Progress:
    """Return what shows progress over `total` bytes; work that takes less than a second shows nothing."""
    return progress_bar(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, delay=1.0)


def followed(
    items: Iterable[Item], *, desc: str, unit: str, total: float | None = None, delay: float = 1.0
) -> Iterator[Item]:
    """Yield `items`, showing how many have been taken; the arguments are those of `progress_bar`."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType]
    with progress_bar(total=total, desc=desc, unit=unit, delay=delay) as bar:
        for item in items:
            yield item
            bar.update(1)


class ProgressLines:
    """Progress as plain lines: `read lines: 1,200 of 3,000 (40%), 40/s, 0:00:45 left`."""

    def __init__(
        self,
        total: float | None,
        desc: str,
        unit: str,
        initial: float = 0,
        divisor: int | None = None,
        delay: float = 0.0,
        silent: bool = False,
    ) -> None:
        """Start the clock.

        Args:
            total: see `progress_bar`, also for all other arguments.
            desc: what is done.
            unit: of `total`.
            initial: done before.
            divisor: of k, M, G; None: whole numbers.
            delay: seconds before the first line.
            silent: show nothing.
        """
        self.total, self.n = total, initial
        self._desc, self._unit, self._divisor = desc, unit, divisor
        self._initial, self._delay, self._silent = initial, delay, silent
        self._began = self._last_line = time.monotonic()
        self._closed, self._more = False, ""

    def __enter__(self) -> ProgressLines:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; work that ended with an error is not reported as done."""
        if kind is not None:
            self._closed = True
        self.close()

    def update(self, n: float = 1) -> None:
        """Count `n` as done, and print a line if the last one is some time ago."""
        self.n += n
        now = time.monotonic()
        if now - self._last_line >= min(max(_SOON, (now - self._began) / 10), _LATER) and not self._silent:
            self._last_line = now
            self._say(f", {self._rate(now)}{self._left(now)}")

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Show `s` at the end of the lines to come."""
        self._more = f", {s}" if s else ""

    def close(self) -> None:
        """Print how much was done and how long it took."""
        now = time.monotonic()
        if not self._closed and not self._silent and now - self._began >= self._delay and self.n > self._initial:
            self._say(f" in {duration(now - self._began)}, {self._rate(now)}")
        self._closed = True

    def _say(self, more: str) -> None:
        done = self._number(self.n)
        if self.total:
            done += f" of {self._number(self.total)}"
        share = f" ({self.n / self.total:.0%})" if self.total else ""
        unit = "" if self._unit == "B" and self._divisor else f" {self._unit}"
        try:
            print(f"{self._desc}: {done}{unit}{share}{more}{self._more}", file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody reads it; the work goes on
            self._silent = True

    def _speed(self, now: float) -> float:
        return (self.n - self._initial) / max(now - self._began, 1e-9)

    def _rate(self, now: float) -> str:
        speed = self._speed(now)
        return f"{self._number(speed)}/s" if speed >= 1 else f"{speed:.2g}/s"

    def _left(self, now: float) -> str:
        speed = self._speed(now)
        return f", {duration((self.total - self.n) / speed)} left" if self.total and speed > 0 else ""

    def _number(self, value: float) -> str:
        if self._divisor is None:
            return f"{value:,.0f}"
        name = "B" if self._unit == "B" else ""
        for letter in ("", "k", "M", "G", "T"):
            if value < self._divisor or letter == "T":
                return f"{value:.3g} {letter}{name}".strip()
            value /= self._divisor
        raise AssertionError("the last letter takes all")


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, `0:12:10`."""
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
