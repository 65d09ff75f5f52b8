"""Rank-aware logging: one logger tree, one format, silent on ranks other than the reporting one.

What is shown on the console can be kept in a file as well (`keep_log`). On a terminal a bar shows the steps of a run;
their lines then go to the file alone (`FILE_ONLY`).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_v2pe.foreign.printable import printable

_ROOT = "megatron_v2pe"

EXPECTED_WARNINGS = (
    # Optional packages are found at run time; the local implementations are what is tested.
    (UserWarning, r".*(Apex|Transformer Engine).* not installed.*"),
    (UserWarning, r".*Apex is not installed.*"),
    # Names the pinned versions of torch and Megatron-Core still use between themselves.
    (FutureWarning, r".*(is deprecated).*"),
    (UserWarning, r".*full scope is deprecated.*"),
    # Megatron-Core looks at `.grad` of every tensor it holds.
    (UserWarning, r"(?s).*The \.grad attribute of a Tensor that is not a leaf.*"),
    # About streams of a GPU; Megatron-Core says it on any device.
    (UserWarning, r".*CUDA_DEVICE_MAX_CONNECTIONS.*"),
)
"""Warnings of other libraries that ask nothing of a user of the command-line tools: category, message."""

EXPECTED_MESSAGES = (
    # Megatron-Core 0.19 on the model class and the form of a layer's parts that also serve its older releases.
    ("megatron.core.models.gpt.gpt_model", "GPTModel IS DEPRECATED."),
    ("megatron.core.transformer.transformer_layer", "Rewrapping ModuleSpec with module"),
)
"""What others log as a warning and ask nothing of a user either: logger, beginning of the message."""


FILE_ONLY = {"file_only": True}
"""`extra` of a message that the console does not show: something else there says it."""
_FORMAT, _TIME, _DATE = "%(asctime)s %(levelname)s %(message)s", "%H:%M:%S", "%Y-%m-%d %H:%M:%S"


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(rank: int = 0, level: int = logging.INFO) -> None:
    """Send the package's log to stderr: everything on rank 0, warnings and errors on the others."""
    logger = logging.getLogger(_ROOT)
    logger.handlers.clear()
    handler = _Console(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(_Printable(f"{prefix}{_FORMAT}", _TIME))
    handler.addFilter(lambda record: not getattr(record, "file_only", False))
    logger.addHandler(handler)
    logger.setLevel(level if rank == 0 else logging.WARNING)
    logger.propagate = False


@contextmanager
def keep_log(path: Path | None) -> Iterator[None]:
    """Append what is logged to a file as well, for as long as the block lasts.

    A disk that fills up meanwhile is reported once; the work goes on.

    Args:
        path: of the file, its folder made where it is not there; None: keep nothing.

    Raises:
        OSError: the file cannot be opened.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _KeptLog(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Printable(_FORMAT, _DATE))
    logger = logging.getLogger(_ROOT)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError, ValueError):  # what could not be written has been reported
            handler.close()


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes above a progress bar where one is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        shown = sys.modules.get("tqdm")
        if shown is None or not getattr(shown.tqdm, "_instances", None):
            super().emit(record)
            return
        with shown.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _KeptLog(logging.FileHandler):
    """A file that may become impossible to write."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Report once that the file cannot be written."""
        if not self._reported:
            self._reported = True
            error = sys.exc_info()[1]
            print(f"{printable(self.baseFilename)} is not written, the work goes on: {error}", file=sys.stderr)


class _Printable(logging.Formatter):
    """Spells out control characters: names of files and words of a model stand in messages."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        return printable(super().format(record), lines=True)


class _Without(logging.Filter):
    """Lets through what does not begin with a given text."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is shown."""
        return not record.getMessage().startswith(self._beginning)


def quiet_expected_warnings() -> None:
    """Silence `EXPECTED_WARNINGS` and `EXPECTED_MESSAGES`; tools call this before Megatron-Core is imported."""
    for category, message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name, beginning in EXPECTED_MESSAGES:
        logging.getLogger(name).addFilter(_Without(beginning))
