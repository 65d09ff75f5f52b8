"""Progress in bytes, shown for conversions that take longer than a second."""

from __future__ import annotations

from megatron_v2pe.base.progress import Progress, progress_bar


def byte_progress(total: int, what: str) -> Progress:
    """Return what shows progress over `total` bytes on stderr; use as a context manager."""
    return progress_bar(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, delay=1.0)
