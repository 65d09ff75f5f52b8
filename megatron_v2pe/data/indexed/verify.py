"""Comparing every byte of an indexed data set with its checksums; training does so for what it reads."""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.checksums import BLOCK
from megatron_v2pe.data.indexed.files import FileStore
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import decode


def verify(folder: Path) -> layout.Manifest:
    """Read every file of a set whole.

    Raises:
        DataError: no indexed data set, or one that is damaged; names the file.
    """
    manifest = layout.Manifest.read(folder)
    files = layout.SetFiles(folder, manifest)
    with progress_bar(total=sum(manifest.sizes.values()), desc="verify", unit="B", unit_scale=True, delay=1.0) as bar:
        for name, size in manifest.summed.items():
            file = files.open(name)
            for start in range(0, size, _AT_ONCE):
                file.check(start, min(start + _AT_ONCE, size))
                bar.update(min(_AT_ONCE, size - start))
        for size in FileStore(folder, manifest.embedded, files).check_copies():
            bar.update(size)
    return manifest


def report_of(folder: Path, manifest: layout.Manifest, name: str) -> str:
    """Return the text of a report of a set.

    Raises:
        DataError: it is damaged.
    """
    file = layout.SetFiles(folder, manifest).open(name)
    file.check_all()
    return printable(decode(bytes(file.buffer), printable(file.path), DataError), lines=True)


_AT_ONCE = 256 * BLOCK
