"""A progress bar in bytes, shown for conversions that take longer than a second."""

from __future__ import annotations

from tqdm import tqdm


def byte_progress(total: int, what: str) -> tqdm:  # type: ignore[type-arg]
    """Return a bar over `total` bytes on stderr; use as a context manager."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, delay=1.0)
