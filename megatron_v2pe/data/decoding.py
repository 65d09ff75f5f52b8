"""Errors of third-party decoders as errors of a sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable


@contextmanager
def decoding(path: str, problem: str) -> Iterator[None]:
    """Raise whatever a decoder raises inside as DataError `path: problem: cause`; keep only its calls inside."""
    try:
        yield
    except DataError:
        raise
    # Third-party decoders raise anything on damaged input: IndexError, struct.error, MemoryError, UnicodeDecodeError...
    except Exception as error:
        raise DataError(f"{printable(path)}: {problem}: {type(error).__name__}: {printable(error)[:500]}") from error
