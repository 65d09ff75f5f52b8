"""Pieces of work whose errors end the work and not the run: every rank knows what any rank met before the next piece.

`rank_errors` raises an error of one rank on all of them, and an error of the program ends the run. Here every rank is
given a description of the error and none is raised, for work that a run can do without. Ranks wait for one another as
long as their group allows.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch.distributed as dist

from megatron_v2pe.device import watchdog
from megatron_v2pe.errors import CommunicationError, V2PEError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What came of a piece of work."""

    result: Result | None = None
    problem: str | None = None
    """What the first of the ranks met that met something, the same on all; None: nothing went wrong anywhere. That a
    rank has lost another one counts only where no rank has met anything else."""


class Agreement:
    """Does pieces of work on all ranks of a group, which call its methods in the same order."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """Remember the group of the hosts; None: this process is alone."""
        self._group = group

    def everywhere(self, action: Callable[[], Result], undo: Callable[[], None] = lambda: None) -> Outcome[Result]:
        """Run an action on every rank; each has its own result.

        Args:
            action: run on every rank; it exchanges nothing over the group.
            undo: run on a rank whose action met an error, before the others learn of it. Nothing of the action is held
                any more by then.
        """
        result, problem = _tried(action)
        if problem is not None:
            undo()
        found = _first_of(self._gathered(problem))
        return Outcome(None if found is not None else result, found)

    def of_all(self, action: Callable[[], Result]) -> Outcome[list[Result]]:
        """Run an action on every rank; all have the results of all, in the order of ranks."""
        result, problem = _tried(action)
        gathered = self._gathered((result, problem))
        problems = [problem for _, problem in gathered]
        found = _first_of(problems)
        return Outcome(None if found is not None else [cast(Result, result) for result, _ in gathered], found)

    def on_first_rank(self, action: Callable[[], Result]) -> Outcome[Result]:
        """Run an action on the group's first rank while the others wait; all have its result."""
        first = self._group is None or self._group.rank() == 0
        result, problem = _tried(action) if first else (None, None)
        result, problem = self._gathered((result, problem))[0]
        return Outcome(result, None if problem is None else _first_of([problem]))

    def close(self) -> None:
        """Close the group; the object cannot be used any more."""
        if self._group is not None:
            group, self._group = self._group, None
            dist.destroy_process_group(group)

    def _gathered(self, mine: Result) -> list[Result]:
        if self._group is None:
            return [mine]
        everyone = [mine] * self._group.size()
        dist.all_gather_object(everyone, mine, group=self._group)
        return everyone


@dataclass(frozen=True)
class _Problem:
    """What one rank met."""

    text: str
    is_loss: bool
    """Another rank did not answer any more, perhaps because of an error of its own."""


def _first_of(problems: list[_Problem | None]) -> str | None:
    """Return the first problem that is a cause, with the number of its rank where there are several ranks."""
    met = [(rank, problem) for rank, problem in enumerate(problems) if problem is not None]
    for rank, problem in sorted(met, key=lambda one: one[1].is_loss):
        return problem.text if len(problems) == 1 else f"rank {rank}: {problem.text}"
    return None


def _tried(action: Callable[[], Result]) -> tuple[Result | None, _Problem | None]:
    """Return an action's result, or what it met; then no frame of it holds anything any more."""
    try:
        return action(), None
    except Exception as error:
        found = _problem(error)
        met: BaseException | None = error
        while met is not None:
            traceback.clear_frames(met.__traceback__)
            met = met.__cause__ or met.__context__
    return None, found


def _problem(error: Exception) -> _Problem:
    """Return an error in words, with its place in the code where it is no message to the user."""
    ours = watchdog.plain(error)
    text = " ".join(str(ours).split()) or "no message"
    if isinstance(ours, V2PEError):
        return _Problem(text, isinstance(ours, CommunicationError))
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.filename.rpartition('megatron_v2pe/')[2]}:{place.lineno}"
    return _Problem(f"{type(error).__name__}: {text} ({where})", False)
