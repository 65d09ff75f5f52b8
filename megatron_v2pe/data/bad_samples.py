"""Bad samples: a run counts them by cause, reports them, and stops when there are more than it allows."""

from __future__ import annotations

import re
from collections import Counter

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.types import SampleId
from megatron_v2pe.errors import DataError

_log = get_logger(__name__)
_SHOWN = 5
FIND_ALL = "tools/check_data.py --full with the same settings finds all of them"
"""What a user can do next."""


class SkipLog:
    """The samples that a run had to leave out."""

    def __init__(
        self, limit: int, counts: dict[str, int] | None = None, besides: SkipLog | None = None, quiet: bool = False
    ) -> None:
        """Start a count.

        Args:
            limit: how many samples may be left out in all.
            counts: how many the run has left out so far, by cause.
            besides: another log whose samples count towards the same limit.
            quiet: log nothing, because another rank reports the same samples.
        """
        self.limit = limit
        self.counts = Counter(counts or {})
        self._besides = besides
        self._seen = Counter[str]()
        self.quiet = quiet
        self.examples: list[dict[str, str]] = []
        """The first samples of each cause since this log was begun: `sample` and `error`."""

    @property
    def total(self) -> int:
        """Return how many samples have been left out so far."""
        return sum(self.counts.values()) + (self._besides.total if self._besides else 0)

    def skip(self, source: SampleId, error: DataError) -> None:
        """Count a bad sample, and log it unless there were several of its kind.

        Raises:
            DataError: more samples were left out than the run allows; names this one, the causes, and what to do.
        """
        cause = cause_of(str(error))
        self.counts[cause] += 1
        if self.total > self.limit:
            causes = "; ".join(f"{count} x {name}" for name, count in self.counts.most_common(_SHOWN))
            raise DataError(
                f"{source}: {error}\n{self.total} bad samples, data.max_skipped_samples allows {self.limit} "
                f"({causes}); {FIND_ALL}"
            ) from error
        self._seen[cause] += 1
        if self._seen[cause] <= _SHOWN:
            self.examples.append({"sample": str(source), "error": str(error)})
        if self.counts[cause] <= _SHOWN and not self.quiet:
            more = ", further ones of this kind are only counted" if self.counts[cause] == _SHOWN else ""
            _log.warning("skipped %s: %s (%d of at most %d%s)", source, error, self.total, self.limit, more)


def cause_of(message: str) -> str:
    """Return the kind of an error: the first line of its text without paths and numbers."""
    text = re.sub(r"[^\s:]*[/\\][^:\n]*|\S+\.\w{3,4}(?=[\s:])", "FILE", message.split("\n")[0])
    return re.sub(r"\d+", "N", text)[:80]
