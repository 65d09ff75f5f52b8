"""Process groups beside those of a layout, over the same ranks, for work in between that may be given up.

Evaluation while training exchanges what it exchanges over groups of its own. Where one rank of a copy of the model
fails in the middle of an exchange, the others wait for it inside of the same group; that group is then given up on all
of them, and the groups that training uses have seen nothing of it. Groups are opened for the work and closed behind it,
so that what they hold is given back.

How a rank that waits learns that another one has failed depends on the backend. With gloo the failed rank closes its
connections, and every rank that waits for it meets an error. NCCL tells nobody: there a thread looks every half second
for a mark in the run's store, and aborts this rank's groups when it finds one.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.parallel import topology

LONGEST_WAIT = timedelta(days=7)
"""How long ranks wait for those that have more to do. Dead and frozen processes are found by the watchdog."""
_LOOK_SECONDS = 0.5
_opened = count()


@dataclass
class SideGroups:
    """The groups of one piece of work, of which every rank of the world opens one at the same time."""

    tensor: dist.ProcessGroup
    context: dist.ProcessGroup
    pipeline: dist.ProcessGroup
    tensor_context: dist.ProcessGroup
    copy: dist.ProcessGroup
    """All ranks of this copy of the model; until they are closed, `topology.model_copy_group` is this one."""
    replaces: dict[dist.ProcessGroup, dist.ProcessGroup]
    """Group of the layout -> the one that takes its place; groups of one rank stay."""
    _created: list[dist.ProcessGroup] = field(default_factory=list)
    _alarm: _Alarm | None = None
    _before: dist.ProcessGroup | None = None

    @classmethod
    def open(cls, groups: ProcessGroupCollection) -> SideGroups:
        """Create groups over the ranks of a layout's; every rank of the world calls this.

        Args:
            groups: of the layout.
        """
        of_layout = [groups.tp, groups.cp, groups.pp, groups.tp_cp, topology.model_copy_group()]
        mine = [tuple(dist.get_process_group_ranks(group)) for group in of_layout]
        everyone: list[list[tuple[int, ...]]] = [mine] * dist.get_world_size()
        if dist.get_world_size() > 1:
            dist.all_gather_object(everyone, mine)
        lists = sorted({ranks for one in everyone for ranks in one if len(ranks) > 1})
        made: dict[tuple[int, ...], dist.ProcessGroup] = {}
        for ranks in lists:  # every rank takes part in the making of every group, in one order
            group = dist.new_group(list(ranks), timeout=LONGEST_WAIT)
            if isinstance(group, dist.ProcessGroup):
                made[ranks] = group
        own = [made.get(ranks, old) for ranks, old in zip(mine, of_layout, strict=True)]
        replaces = {old: new for old, new in zip(of_layout, own, strict=True) if old is not new}
        members = {rank for ranks in made for rank in ranks}
        alarm = _Alarm.over(members, [*made.values()])
        before = topology.exchange_copy_group(own[-1])
        return cls(*own, replaces=replaces, _created=[*made.values()], _alarm=alarm, _before=before)

    def collection(self) -> ProcessGroupCollection:
        """Return the groups that a model is run with."""
        found = ProcessGroupCollection()
        found.tp, found.cp, found.pp, found.tp_cp = self.tensor, self.context, self.pipeline, self.tensor_context
        return found

    def give_up(self) -> None:
        """Tell the ranks that may wait for this one that it does not come any more; the groups are closed.

        The caller holds nothing that refers to them but this object: gloo's connections are closed when the last
        reference goes.
        """
        if self._alarm is not None:
            self._alarm.ring()
        self.close()

    def close(self) -> None:
        """Close the groups on this rank, with the connections and the memory they hold; may be called twice."""
        if self._before is not None:
            topology.exchange_copy_group(self._before)
        if self._alarm is not None:
            self._alarm.stop()
        created, self._created, self._alarm, self._before = self._created, [], None, None
        alone = topology.single_rank_group()
        self.tensor = self.context = self.pipeline = self.tensor_context = self.copy = alone
        self.replaces = {}
        while created:
            with suppress(RuntimeError, ValueError):  # of a group that was aborted
                dist.destroy_process_group(created.pop())
        gc.collect()


@dataclass
class _Alarm:
    """A mark in the run's store that makes NCCL groups be aborted by every rank that has a part in them."""

    groups: Sequence[dist.ProcessGroup]
    store: dist.Store
    key: str
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @classmethod
    def over(cls, members: set[int], groups: Sequence[dist.ProcessGroup]) -> _Alarm | None:
        """Begin to look for the mark of these ranks; nothing where no group is of NCCL."""
        number = next(_opened)
        if not groups or dist.get_backend(groups[0]) != dist.Backend.NCCL:
            return None
        store = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
        store = store.clone() if hasattr(store, "clone") else store  # pyright: ignore[reportAttributeAccessIssue]
        alarm = cls(groups, store, f"side groups {number} of {min(members)} given up")
        alarm.thread = threading.Thread(target=alarm._look, name="side groups", daemon=True)
        alarm.thread.start()
        return alarm

    def ring(self) -> None:
        """Set the mark, and wait until this rank's own groups are aborted."""
        self.store.set(self.key, "1")
        if self.thread is not None:
            self.thread.join()

    def stop(self) -> None:
        """End the thread."""
        self.ended.set()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()

    def _look(self) -> None:
        while not self.ended.wait(_LOOK_SECONDS):
            if not self.store.check([self.key]):
                continue
            for group in self.groups:
                with suppress(RuntimeError):
                    group._get_backend(torch.device("cuda")).abort()  # pyright: ignore[reportPrivateUsage]
            return


def patient_world() -> dist.ProcessGroup | None:
    """Create a group of all hosts, in which a rank may be waited for as long as it works; None for a world of one.

    Every rank of the world calls this. Groups of the layout wait `parallel.distributed_timeout_minutes` at most.
    """
    if dist.get_world_size() == 1:
        return None
    group = dist.new_group(timeout=LONGEST_WAIT, backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group
