"""When is a loss a spike? A rule that a few spikes in its window do not bend: median and median deviation.

With m the median of the last losses and d the median of |loss - m|, 1.4826 d estimates their standard deviation where
they are normal. A loss above m + factor * max(1.4826 d, 0.001 |m|) is a spike; the second term keeps losses that hardly
move from being spikes for their rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

_NORMAL = 1.4826
"""Standard deviations in a median deviation of normal numbers."""
_LEAST_SHARE = 1e-3
_LEAST_LOSSES = 20
"""Losses that must be known before one is judged, or half of a shorter window."""


class SpikeRule:
    """Judges one loss after the other."""

    def __init__(self, factor: float | None, window: int) -> None:
        """Begin with no losses known.

        Args:
            factor: see above; None: nothing is a spike.
            window: losses that count.
        """
        self._factor, self._window = factor, window
        self._losses: deque[float] = deque(maxlen=window)
        self._spiking = False

    def judge(self, loss: float) -> tuple[float, bool] | None:
        """Take a finite loss; where it is a spike return the limit it is above, and whether the spike begins with it.

        Steps of a spike that follow one another are one spike.
        """
        limit = self._limit()
        found = None if limit is None or loss <= limit else (limit, not self._spiking)
        self._spiking = found is not None
        self._losses.append(loss)
        return found

    def _limit(self) -> float | None:
        if self._factor is None or len(self._losses) < min(_LEAST_LOSSES, max(2, self._window // 2)):
            return None
        middle = median(self._losses)
        deviation = _NORMAL * median(abs(loss - middle) for loss in self._losses)
        return middle + self._factor * max(deviation, _LEAST_SHARE * abs(middle))

    def state(self) -> dict[str, object]:
        """Return what a run that goes on has to know."""
        return {"losses": list(self._losses), "spiking": self._spiking}

    def restore(self, losses: Sequence[float], spiking: bool) -> None:
        """Take over the state of an earlier process; of losses that another window has kept, the last count."""
        self._losses.clear()
        self._losses.extend(losses)
        self._spiking = spiking
