"""Rank-aware logging: one logger tree, one format, silent on ranks other than the reporting one."""

from __future__ import annotations

import logging
import sys

_ROOT = "megatron_v2pe"


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(rank: int = 0, level: int = logging.INFO) -> None:
    """Send the package's log to stderr: everything on rank 0, errors only on the others."""
    logger = logging.getLogger(_ROOT)
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"{prefix}%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level if rank == 0 else logging.ERROR)
    logger.propagate = False
