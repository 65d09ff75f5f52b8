"""What a run does between two steps, on every rank: the class such work derives from, and the list of a run's.

Validation, evaluation and checks are work of this kind. Each says after which steps its turn comes, and returns the
values that are logged in that step's row. It leaves everything that a step reads as it was: training with it gives the
same bits as training without.

A run that is asked to stop saves at once. What was due after that step is then done by the process that goes on from
it, and its values are added to the row of that step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_v2pe.device import watchdog
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.schema import Fields


class AfterStep:
    """Work between two steps; every rank has one, and decides alike."""

    name: str
    """Under this its state is kept in a checkpoint, unique in a run."""
    is_asked_to_stop: Callable[[], bool] = staticmethod(lambda: False)
    """Whether this rank has been asked to stop, for work that takes long; ranks may answer differently."""

    @property
    def at_start(self) -> bool:
        """Whether it may be due before the first step of a run too, after 0 steps; other work is not asked then."""
        return False

    def before_step(self, step: int) -> None:
        """Take note that a step begins, its data at hand, a number from 1; every rank has this called."""

    def before_update(self, step: int) -> None:
        """Take note that a step is about to update the weights; not called for a step that updates nothing."""

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether its turn comes after a step.

        Args:
            iteration: steps done.
            is_last: this is the last step of the whole run (not merely of this process).
        """
        raise NotImplementedError

    def run(self, iteration: int) -> Mapping[str, float] | None:
        """Do the work, on every rank, and return what is logged of it.

        Args:
            iteration: steps done.

        Returns:
            Values by name, `<work>/<what>`; rank 0's are logged. None, on all ranks, where it was left because a rank
            was asked to stop: the process that goes on does it anew.
        """
        raise NotImplementedError

    def asks_to_save(self) -> bool:
        """Return, after `run`, whether a checkpoint of this step is wanted; every rank answers alike."""
        return False

    def saved(self, iteration: int) -> None:
        """Take note that a checkpoint of these steps is in place."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on has to know, as plain JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` has given in an earlier process."""

    def close(self) -> None:
        """Release what it holds, at the end of the run."""


@dataclass
class AfterSteps:
    """All that a run does between steps, in order."""

    works: Sequence[AfterStep] = ()
    done: dict[str, int] = field(default_factory=dict)
    """Name of a work -> step after which it was done last."""
    gave_way: bool = False
    """Whether work was left, since a rank was asked to stop; the same on every rank."""

    def run(self, iteration: int, is_last: bool) -> dict[str, float]:
        """Do what is due after a step and not done yet; return all values."""
        values: dict[str, float] = {}
        for work in self.works:
            if self.done.get(work.name) == iteration or not work.is_due(iteration, is_last):
                continue
            if not iteration and not work.at_start:
                continue
            watchdog.progress(f"{work.name} after step {iteration}")
            found = work.run(iteration)
            if found is None:
                self.gave_way = True
                break
            values |= found
            self.done[work.name] = iteration
        return values

    def before_step(self, step: int) -> None:
        """Tell all of them that a step begins."""
        for work in self.works:
            work.before_step(step)

    def before_update(self, step: int) -> None:
        """Tell all of them that a step is about to update the weights."""
        for work in self.works:
            work.before_update(step)

    def listen(self, is_asked_to_stop: Callable[[], bool]) -> None:
        """Let all of them know how they learn that this rank has been asked to stop."""
        for work in self.works:
            work.is_asked_to_stop = is_asked_to_stop

    def asks_to_save(self, iteration: int) -> bool:
        """Return whether one that was done after this step wants a checkpoint of it."""
        return any(work.asks_to_save() for work in self.works if self.done.get(work.name) == iteration)

    def saved(self, iteration: int) -> None:
        """Tell all of them that a checkpoint is in place."""
        for work in self.works:
            work.saved(iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all, as plain JSON."""
        return {work.name: {"done": self.done.get(work.name, 0), "state": work.state_dict()} for work in self.works}

    def load_state_dict(self, state: Mapping[str, Any], source: str) -> None:
        """Take over the state of those that a checkpoint knows; others begin anew.

        Args:
            state: what `state_dict` has given.
            source: the file it stands in, for an error.

        Raises:
            CheckpointError: it is damaged.
        """
        fields = Fields(state, source, CheckpointError)
        for work in self.works:
            if work.name in state:
                section = fields.section(work.name)
                self.done[work.name] = section.whole("done", least=0)
                work.load_state_dict(section.get("state", dict[str, Any]))

    def close(self) -> None:
        """Release what all of them hold."""
        for work in self.works:
            work.close()
