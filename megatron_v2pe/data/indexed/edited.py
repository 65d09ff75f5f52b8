"""Annotations edited since an indexed set was built from them: a run trains on what was built, and says so."""

from __future__ import annotations

import hashlib
import os

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.foreign.printable import printable

_READ_BYTES = 1 << 22
_log = get_logger(__name__)


def edited_annotations(samples: IndexedSamples) -> list[str]:
    """Return the annotation files that are not what the set was built from.

    One that is no younger than the set is taken for what it was; one that is gone is no matter. Of the others all bytes
    are compared, about a second for each GB.
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


def tell_edited(samples: IndexedSamples) -> None:
    """Name them in the log."""
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
