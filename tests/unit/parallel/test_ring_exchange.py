"""The end of a neighbour is noticed by what it no longer sends, also where the backend forgets what was sent to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.distributed as dist

from megatron_v2pe.errors import CommunicationError
from megatron_v2pe.parallel.attention.ring_exchange import Ring


def forgotten():
    pytest.fail("a send that is never answered was waited for before what arrives")


def broken():
    raise RuntimeError("Connection closed by peer")


def test_what_arrives_is_waited_for_before_what_leaves(monkeypatch):
    """Gloo's `waitSend` of a send whose receiver is dead was seen to last for the whole timeout (two CPU ranks)."""
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "P2POp", lambda operation, *_: operation)
    monkeypatch.setattr(
        dist,
        "batch_isend_irecv",
        lambda operations: [SimpleNamespace(wait=forgotten if one is dist.isend else broken) for one in operations],
    )
    ring = Ring(cast(dist.ProcessGroup, SimpleNamespace(rank=lambda: 0, size=lambda: 2)))
    handover = ring.pass_on([torch.zeros(4, 2), torch.zeros(4, 2)], rows=4, step=1)
    with pytest.raises(CommunicationError, match="ring attention, step 1 of 2, rank 0 .*Connection closed by peer"):
        handover.wait()
