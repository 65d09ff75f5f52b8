"""Bad samples: counted by cause, reported, and never more of them than a run allows."""

from __future__ import annotations

import re
from collections import Counter

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.types import SampleId
from megatron_v2pe.errors import DataError

_log = get_logger(__name__)
_SHOWN = 5


class SkipLog:
    """Samples a run did without."""

    def __init__(
        self, limit: int, counts: dict[str, int] | None = None, besides: SkipLog | None = None, quiet: bool = False
    ) -> None:
        """Start a count.

        Args:
            limit: samples allowed in all.
            counts: those of the run so far, by cause.
            besides: another log whose samples count towards the same limit.
            quiet: count without a word, where another rank reports the same samples.
        """
        self.limit = limit
        self.counts = Counter(counts or {})
        self._besides = besides
        self.quiet = quiet

    @property
    def total(self) -> int:
        """Samples skipped so far."""
        return sum(self.counts.values()) + (self._besides.total if self._besides else 0)

    def skip(self, source: SampleId, error: DataError) -> None:
        """Count a bad sample.

        Raises:
            DataError: more were skipped than the run allows; names this one and the causes so far.
        """
        cause = cause_of(str(error))
        self.counts[cause] += 1
        if self.total > self.limit:
            causes = "; ".join(f"{count} x {name}" for name, count in self.counts.most_common(_SHOWN))
            raise DataError(
                f"{source}: {error}\n{self.total} bad samples, data.max_skipped_samples allows {self.limit} ({causes})"
            ) from error
        if self.counts[cause] <= _SHOWN and not self.quiet:
            more = ", further ones of this kind are only counted" if self.counts[cause] == _SHOWN else ""
            _log.warning("skipped %s: %s (%d of at most %d%s)", source, error, self.total, self.limit, more)


def cause_of(message: str) -> str:
    """Return the kind of an error: its text without paths and numbers."""
    text = re.sub(r"[^\s:]*[/\\][^:\n]*|\S+\.\w{3,4}(?=[\s:])", "FILE", message.split("\n")[0])
    return re.sub(r"\d+", "N", text)[:80]
