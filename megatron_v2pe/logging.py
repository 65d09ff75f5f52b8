"""Rank-aware logging: one logger tree, one format, silent on ranks other than the reporting one."""

from __future__ import annotations

import logging
import sys
import warnings

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


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; `name` is its `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(rank: int = 0, level: int = logging.INFO) -> None:
    """Send the package's log to stderr: everything on rank 0, warnings and errors on the others."""
    logger = logging.getLogger(_ROOT)
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(_Printable(f"{prefix}%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level if rank == 0 else logging.WARNING)
    logger.propagate = False


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
