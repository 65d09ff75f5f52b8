"""The files beside the weights of an HF folder, checked before they are carried along: what is damaged is named.

A format without checksums shows damage only where it can be read. Whatever the program itself reads later is read
here: the tokenizer and the JSON files. Text that is empty or is no text is warned of, for it may be meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.hf.folder import other_files
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign import tokenizer_folder, tokenizer_settings
from megatron_v2pe.foreign.files import check_regular, read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import check
from megatron_v2pe.foreign.text import read_json, read_json_object

OBJECTS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "configuration.json",
    "tokenizer.json",
    tokenizer_settings.CONFIG,
)
"""Files that hold a JSON object; other JSON files may hold anything."""
_TEXTS = {".py", ".md", ".txt", ".jinja"}
_LARGEST_TEXT = 1 << 24
_log = get_logger(__name__)
SideFiles = Callable[[Path, Path, str, Mapping[str, Any]], None]
"""Writes the files beside the weights that follow from `config.json` and from the layout, where one of them is not the
source's. It takes the source's folder of `config.json`, the folder that is being written, its layout and the content of
its `config.json`."""


def check_side_files(folder: Path, rows: int) -> None:
    """Check the files of an HF folder that are no weights.

    Args:
        folder: the checkpoint's.
        rows: of the model's vocabulary.

    Raises:
        CheckpointError: a JSON file that is none, a tokenizer that does not load or has more ids than the model has
            rows, a pipe or a device; the file is named.
    """
    for relative in other_files(folder):
        path = folder / relative
        if relative.name in OBJECTS:
            read_json_object(path, CheckpointError)
        elif relative.name == tokenizer_settings.TOKENS_MAP:
            content = read_json_object(path, CheckpointError)
            check(dict[str, str | dict[str, Any] | list[Any] | None], content, printable(path), CheckpointError)
        elif relative.suffix == ".json":
            read_json(path, CheckpointError, constants=True)
        elif relative.suffix in _TEXTS:
            _warn_of_text(path)
    tokenizer_folder.check_folder(folder, rows, CheckpointError)


def _warn_of_text(path: Path) -> None:
    if check_regular(path, CheckpointError) > _LARGEST_TEXT:
        return
    content = read_bytes(path, CheckpointError)
    if not content.strip(b"\0 \t\r\n") and path.name != "__init__.py":
        _log.warning("%s is empty", printable(path))
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        _log.warning("%s is no text: byte %d is 0x%02x", printable(path), error.start, content[error.start])
