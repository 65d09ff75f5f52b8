"""Checksums of blocks: made as a file grows, compared block by block, each once, with what is read."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from megatron_v2pe.data.indexed import layout, pieces
from megatron_v2pe.data.indexed.checksums import BLOCK, BlockSums, CheckedFile, read_checksums, write_checksums
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.indexed.verify import report_of, verify
from megatron_v2pe.errors import DataError


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_the_same_however_it_was_written(tmp_path, size):
    content, draws = random.Random(size).randbytes(size), random.Random(1)
    whole, parts, place = BlockSums(), BlockSums(), 0
    whole.update(content)
    while place < size:
        step = draws.choice((1, 100, BLOCK, BLOCK + 3, 5 * BLOCK))
        parts.update(memoryview(content)[place : place + step])
        place += step
    assert whole.digest() == parts.digest() and whole.blocks().tolist() == parts.blocks().tolist()
    assert len(whole.blocks()) == -(-size // BLOCK)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"b")
    digest = write_checksums(tmp_path, ["a", "b"], {"a": whole})
    assert digest == write_checksums(tmp_path, ["b", "a"], {})
    sums = read_checksums(tmp_path, {"b": 1, "a": size}, digest)
    assert sums["a"].tolist() == whole.blocks().tolist()
    CheckedFile(tmp_path / "a", sums["a"]).check_all()


def test_only_blocks_that_are_read_are_compared(tmp_path, monkeypatch):
    path, sums = tmp_path / "a", BlockSums()
    content = bytearray(random.Random(0).randbytes(4 * BLOCK))
    sums.update(bytes(content))
    content[2 * BLOCK + 7] ^= 1
    path.write_bytes(content)
    file = CheckedFile(path, sums.blocks())
    file.check(0, 2 * BLOCK)
    file.check(3 * BLOCK, 4 * BLOCK)
    for start, stop in ((2 * BLOCK, 2 * BLOCK + 1), (2 * BLOCK - 1, 2 * BLOCK + 1), (3 * BLOCK - 1, 3 * BLOCK + 1)):
        with pytest.raises(DataError, match=rf"a: bytes {2 * BLOCK} to {3 * BLOCK} are not those that were written"):
            file.check(start, stop)
    for start, stop in ((-1, 5), (5, 4), (0, 4 * BLOCK + 1), (2**62, 2**62 + 1)):
        with pytest.raises(DataError, match="of a file of 262144"):
            file.check(start, stop)
    monkeypatch.setattr("xxhash.xxh3_64_intdigest", None)  # a second time nothing is compared
    file.check(1, 2 * BLOCK)


def test_records_that_contradict_one_another(case, tmp_path):
    """As a set written by something else may have them, with the right checksums: refused, never an IndexError."""
    folder = case.build(tmp_path / "set").folder
    rows = np.fromfile(folder / layout.SAMPLES, layout.SAMPLE)
    media = np.fromfile(folder / layout.MEDIA, layout.MEDIUM)
    files = np.fromfile(folder / layout.FILES, layout.FILE)
    ranges = np.fromfile(folder / layout.RANGES, "<i4")
    changes = [
        (name, array, field, value)
        for name, array, fields in (
            (layout.SAMPLES, rows, ["tokens", "tiles", "supervised", "ids", "first_range", "first_medium"]),
            (layout.MEDIA, media, ["file", "columns", "rows"]),
            (layout.FILES, files, ["path"]),
        )
        for field in fields
        for value in (-1, 1, 99, 32000)
        if value != 1 or field not in ("file", "path")  # another file, which may be meant
    ]
    for name, array, field, value in changes:
        changed = array.copy()
        changed[field][0] = value
        refused(folder, name, changed, array)
    for place, value in ((0, -1), (0, 2**31 - 1), (1, -5), (1, 5), (1, 9999)):
        changed = ranges.copy()
        changed[place] = value
        refused(folder, layout.RANGES, changed, ranges)


def refused(folder, name, changed, array):
    """Write records with checksums that are theirs; the first sample has to be refused, or the same as before."""
    before = IndexedSamples(folder)[0]
    changed.tofile(folder / name)
    manifest = layout.Manifest.read(folder)
    digest = write_checksums(folder, list(manifest.summed), {})
    replace(manifest, checksums_xxh3=digest).write(folder)
    try:
        sample = IndexedSamples(folder)[0]
    except DataError as error:
        assert str(folder) in str(error)
    else:
        assert np.array_equal(sample.text.supervised, before.text.supervised) and sample.media == before.media
    array.tofile(folder / name)
    digest = write_checksums(folder, list(manifest.summed), {})
    replace(manifest, checksums_xxh3=digest).write(folder)


def test_room_for_embedded_images(case, tmp_path, monkeypatch, caplog):
    usage = type("Usage", (), {"free": 30_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"30000 bytes are free, the images to be embedded take \d+ or more"):
        case.build(tmp_path / "set", images="embed")
    case.build(tmp_path / "referenced")
    image = tmp_path / "data" / "image" / "0.png"
    usage.free = 2 * image.stat().st_size
    pieces.check_room(tmp_path, [str(image)] * 3 + ["gone.png", "a\0b"])
    assert "take up to" in caplog.text, "the same bytes three times may need their room once"


def test_reports_are_checked_before_they_are_shown(case, tmp_path):
    folder = case.build(tmp_path / "set").folder
    assert "left out" in report_of(folder, verify(folder), "report.txt")
    (folder / "report.txt").write_bytes((folder / "report.txt").read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataError, match=r"report.txt: bytes 0 to \d+ are not those that were written"):
        report_of(folder, layout.Manifest.read(folder), "report.txt")
