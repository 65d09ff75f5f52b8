"""An annotation edited since an indexed set was built from it is named when training opens the set."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from megatron_v2pe.data.indexed.verify import edited_annotations, warn_of_edits


def test_an_annotation_edited_since_the_build_is_named(case, tmp_path, caplog):
    samples = case.build(tmp_path / "set")
    annotation = Path(samples.manifest.datasets[0].annotation)
    before, times = annotation.read_bytes(), os.stat(annotation)
    try:
        assert edited_annotations(samples) == []
        os.utime(annotation)
        os.utime(tmp_path / "set" / "manifest.json", (0, 0))
        assert edited_annotations(samples) == [], "younger, and the same"
        annotation.write_bytes(before.replace(b"a", b"e", 1))
        assert edited_annotations(samples) == [str(annotation)]
        with caplog.at_level(logging.WARNING):
            logging.getLogger("megatron_v2pe").propagate = True
            warn_of_edits(samples)
        assert f"{annotation}: edited since {tmp_path / 'set'} was built" in caplog.text
        annotation.unlink()
        assert edited_annotations(samples) == [], "it need not be there"
    finally:
        annotation.write_bytes(before)
        os.utime(annotation, ns=(times.st_atime_ns, times.st_mtime_ns))
