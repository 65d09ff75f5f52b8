"""What the watchdog writes of a main thread that has met an error and is still on its way to report it."""

from __future__ import annotations

import io
import threading
from contextlib import suppress
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


def dump_at_once(watching):
    """Another rank is seen to end at this very moment, by the watching thread."""
    other = threading.Thread(target=watching._dump)
    other.start()
    other.join()


def dump_at_an_error_of_its_own(watching):
    """Closing a file or writing a picture may try something that fails, and go on."""
    try:
        io.BytesIO().fileno()
    except OSError:
        dump_at_once(watching)


def dump_at_an_error_that_hides_its_origin(watching):
    with suppress(ValueError):
        try:
            io.BytesIO().fileno()
        except OSError:
            try:
                raise ValueError("no such file") from None
            finally:
                dump_at_once(watching)


LEAVING = [dump_at_once, dump_at_an_error_of_its_own, dump_at_an_error_that_hides_its_origin]


@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
def test_the_dump_names_where_the_main_thread_waited_while_it_leaves(tmp_path, leave):
    """The frames that waited are off the stack in a `finally` block, and another rank may be seen to end then."""
    watching = watchdog.start(Place(), dist.HashStore, limit=1000, dumps=tmp_path)
    with pytest.raises(CommunicationError):
        try:
            wait_for_neighbour()
        finally:
            leave(watching)
    watching.finish(0)
    assert "in wait_for_neighbour" in (tmp_path / "hang-rank0.txt").read_text()


def test_the_dump_ends_where_errors_name_each_other(tmp_path):
    """Two errors may each be the context of the other, as Python does not forbid it."""
    watching = watchdog.start(Place(), dist.HashStore, limit=1000, dumps=tmp_path)
    first, second = CommunicationError("a neighbour no longer answers"), OSError("closed")
    first.__context__, second.__context__ = second, first
    watching._met = first
    watching._dump()
    watching.finish(0)
    text = (tmp_path / "hang-rank0.txt").read_text()
    assert text.count("with CommunicationError") == text.count("with OSError") == 1
