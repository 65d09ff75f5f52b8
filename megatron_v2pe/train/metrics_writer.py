"""What a writer of metrics is: the class that all derive from, and what each is opened with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_v2pe.train.config import LoggingConfig
from megatron_v2pe.train.metrics import LoggedStep


@dataclass(frozen=True)
class WriterContext:
    """What a writer is opened with."""

    config: LoggingConfig
    folder: Path | None
    """Folder of the run's logs, which exists; None where nothing is kept."""
    start: int
    """Steps already done."""
    last: int
    """Step at which this process ends, if nothing stops it before."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All settings of the run, as nested plain values."""


class MetricsWriter:
    """Takes the steps of a run, on rank 0 alone; made with a `WriterContext` when the run begins.

    Whatever it raises while the run goes on is logged once, and the run goes on; the other writers get the step, too.
    """

    @classmethod
    def check(cls) -> None:
        """Look, before a run starts, for what this writer needs, such as a package.

        Raises:
            ConfigError: it is missing; says how to get it, and how to do without.
        """

    def __init__(self, place: WriterContext) -> None:
        """Open what is written to.

        Raises:
            V2PEError: it cannot be opened, which ends the run before its first step; after any other error the run goes
                on without this writer.
        """

    def advance(self, iteration: int) -> None:
        """Take note that a step is done, whether it is logged or not."""

    def write(self, step: LoggedStep) -> None:
        """Write a logged step."""
        raise NotImplementedError

    def write_values(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write what was done after a step that an earlier process has written; by default nothing."""

    def add_page(self, page: Path) -> None:
        """Take the page of the run (`train/page/`), at its end; by default it is left alone."""

    def close(self) -> None:
        """Flush and close what is written to."""
