"""Shared by all tests: one pool of gloo processes per world size for the whole session, and the golden folder."""

from __future__ import annotations

import logging
import os
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from megatron_v2pe.workshop.worker_pool import WorkerPool

_CONVERTED = tempfile.TemporaryDirectory(prefix="converted-")
if not torch.cuda.is_available():  # Triton reads this when it is first imported, by Megatron-Core or by a test
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "MEGATRON_V2PE_CONVERTED_DIR" not in os.environ:  # what tests convert stays out of the checkout
    os.environ["MEGATRON_V2PE_CONVERTED_DIR"] = _CONVERTED.name
# How long an example takes says what else the machine does.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Examples are the same each time, so that no change fails by luck: `--hypothesis-profile search` draws new ones.
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")
os.environ["PYTHONPATH"] = os.pathsep.join(  # commands that tests start find `helpers` too
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _whatever_ran_before():
    """Begin alike in every order of tests: the same random numbers, and a log as it is before a tool has set it up."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what a test draws without a generator of its own
    torch.manual_seed(0)
    logger = logging.getLogger("megatron_v2pe")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers produced by the reference implementation."""
    return GOLDEN


class _Pools:
    def __init__(self) -> None:
        self._pools: dict[int, WorkerPool] = {}

    def __getitem__(self, world_size: int) -> WorkerPool:
        return self._pools.setdefault(world_size, WorkerPool(world_size))

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


@pytest.fixture(scope="session")
def pools():
    """Pools of processes by world size: `pools[2].run(function, ...)`."""
    pools = _Pools()
    yield pools
    pools.close()
