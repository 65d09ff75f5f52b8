"""What the watchdog writes of a main thread that has met an error and is still on its way to report it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch.distributed as dist

from megatron_v2pe.device import watchdog
from megatron_v2pe.errors import CommunicationError


@dataclass
class Place:
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def wait_for_neighbour():
    raise CommunicationError("a neighbour no longer answers")


def test_the_dump_names_where_the_main_thread_waited_while_it_leaves(tmp_path):
    """The frames that waited are off the stack in a `finally` block, and another rank may be seen to end then."""
    watching = watchdog.start(Place(), dist.HashStore, limit=1000, dumps=tmp_path)
    with pytest.raises(CommunicationError):
        try:
            wait_for_neighbour()
        finally:
            other = threading.Thread(target=watching._dump)
            other.start()
            other.join()
    watching.finish(0)
    assert "in wait_for_neighbour" in (tmp_path / "hang-rank0.txt").read_text()
