"""Whether an indexed data set is what was built, and what it was built from.

`verify` compares every byte with the checksums; training does so for what it reads. `warn_of_edits` names annotations
that were edited since: a run trains on what was built, and says so.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.checksums import BLOCK
from megatron_v2pe.data.indexed.files import FileStore
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import decode

_AT_ONCE = 256 * BLOCK
_READ_BYTES = 1 << 22
_log = get_logger(__name__)


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


def edited_annotations(samples: IndexedSamples) -> list[str]:
    """Return the annotation files that are not what the set was built from.

    A file that is no younger than the set is taken for unchanged, and one that is missing is passed over. Of the
    others all bytes are compared, about a second for each GB.
    """
    built = os.stat(samples.folder / layout.MANIFEST).st_mtime_ns
    found = list[str]()
    for entry in samples.manifest.datasets:
        try:
            if os.path.isfile(entry.annotation) and os.stat(entry.annotation).st_mtime_ns > built:
                if _sha256(entry.annotation) != entry.annotation_sha256:
                    found.append(entry.annotation)
        except OSError:
            continue  # it need not be there at all
    return found


def warn_of_edits(samples: IndexedSamples) -> None:
    """Name the annotations that were edited since in a warning."""
    if names := edited_annotations(samples):
        shown = ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        _log.warning(
            "%s: edited since %s was built, which is what is trained on; to train on the edited lines build it again "
            "(tools/preprocess_data.py)",
            shown,
            printable(samples.folder),
        )


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
