"""Every file of an indexed data set, finished or not, damaged in every way: the same samples, or a named refusal."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from helpers.damage import SEED, damaged_copies, outcome
from helpers.data_cases import assert_same_folders, every_kind
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.batch import PackReader
from megatron_v2pe.data.indexed import build, pieces, report
from megatron_v2pe.data.indexed.checksums import CHECKSUMS, CheckedFile
from megatron_v2pe.data.indexed.layout import MANIFEST
from megatron_v2pe.data.indexed.plan import IndexedPlan, IndexedReader
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.indexed.streams import Streams
from megatron_v2pe.data.indexed.verify import verify
from megatron_v2pe.errors import DataError
from megatron_v2pe.workshop.synthetic.small_data import FACTS


class Stopped(Exception):
    """What ends a build on purpose."""


@pytest.fixture(scope="module")
def case(tmp_path_factory, tokenizer):
    return every_kind(tmp_path_factory.mktemp("case") / "data", tokenizer)


@pytest.fixture(scope="module", params=["reference", "embed"])
def whole(request, case, tmp_path_factory):
    return case.build(tmp_path_factory.mktemp("whole") / "set", images=request.param).folder


@pytest.fixture
def small_pieces(monkeypatch):
    """Builds of many pieces of work, without the plot, which takes longer than all the rest."""
    monkeypatch.setattr(pieces, "LINES_AT_ONCE", 5)
    monkeypatch.setattr(pieces, "FILES_AT_ONCE", 2)
    monkeypatch.setattr(report, "_plot", lambda path, *_: path.write_bytes(b"plot"))


def contents(case, folder):
    """Open and read everything as training does; return its fingerprint."""
    samples = IndexedSamples(folder)
    samples.check(case.encoder.config, case.encoder.tokenizer, FACTS)
    plan = IndexedPlan(samples, replace(case.encoder.config, meta_path=""), 5, SkipLog(0))
    reader = IndexedReader(
        samples, case.encoder, PackReader(FACTS.tile_size, (0.5,) * 3, "token", case.encoder.denominator)
    )
    digest = hashlib.sha256()
    for pack in plan.epoch(0):
        batch = reader[pack]
        for source, message in batch.unreadable:
            raise DataError(f"{source}: {message}")
        digest.update(repr((batch.seqlens, batch.num_tiles, batch.sources)).encode())
        tensors = batch.input_ids, batch.labels, batch.loss_weights, batch.position_ticks.values, batch.tiles
        for tensor in tensors:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def named(message, copy, name, kind):
    """Whether a refusal names what was damaged; of two files that were exchanged either may be met first."""
    names = [name] if kind != "swap" else [path.name for path in copy.iterdir()]
    return str(copy) in message and any(name in message for name in names)


def outcomes(case, whole, root, seed, check=True, flips=5, until=None):
    """Damage a set in many ways, or `until` something happens; count, and see that refusals name the file."""
    right, found = contents(case, whole), Counter()
    for name, kind, copy in damaged_copies(whole, root, seed, flips):
        what = outcome(partial(contents, case, copy), right)
        found[what.split()[0]] += 1
        assert not what.startswith("TRACEBACK"), f"{kind} of {name}: {what}"
        if check:
            assert what == "right" or named(what, copy, name, kind), f"{kind} of {name}: {what}"
        if check and name != MANIFEST:
            assert named(outcome(partial(verify, copy), None), copy, name, kind), f"{kind} of {name}"
        if until in found:
            break
    return found


def test_a_finished_set(case, whole, tmp_path):
    found = outcomes(case, whole, tmp_path, SEED)
    assert found["SILENT"] == 0 and found["refused:"] > 80 and found["right"] > 5, found


def test_it_is_the_checksums_that_notice(case, whole, tmp_path, monkeypatch):
    """With the comparison taken out the same suite finds damage that nobody notices."""
    monkeypatch.setattr(CheckedFile, "_compare", lambda self, first, last: None)
    found = outcomes(case, whole, tmp_path, SEED + 1, check=False, flips=6, until="SILENT")
    assert found["SILENT"] > 0, found


def without_checksums(folder):
    """Make a set one of the first version of the format."""
    content = json.loads((folder / MANIFEST).read_text())
    for name in ("check", "block", "checksums_xxh3"):
        del content[name]
    del content["sizes"][CHECKSUMS]
    (folder / CHECKSUMS).unlink()
    (folder / MANIFEST).write_text(json.dumps({**content, "version": 1}))


def test_sets_of_the_first_version(case, whole, tmp_path, caplog):
    old = tmp_path / "old"
    shutil.copytree(whole, old)
    without_checksums(old)
    for _ in range(2):
        assert contents(case, old) == contents(case, whole)
    assert [record.levelname for record in caplog.records if "damage inside its files" in record.message] == ["WARNING"]
    found = outcomes(case, old, tmp_path, SEED + 2, check=False, flips=3)  # whatever happens, no traceback
    assert found["refused:"] > 50, found


@pytest.mark.parametrize("commits", [3, 9])
def test_an_unfinished_build(case, tmp_path, monkeypatch, small_pieces, commits):
    """Stopped while files are measured, or samples encoded: damage is refused, or done again with an equal result."""
    assert_continued(case, tmp_path, monkeypatch, Streams, "commit", commits)


def test_a_build_that_was_all_but_finished(case, tmp_path, monkeypatch, small_pieces):
    assert_continued(case, tmp_path, monkeypatch, build, "put_in_place", 0)


def assert_continued(case, tmp_path, monkeypatch, owner, name, calls):
    """Stop a build after so many calls of a function, damage what is there in all ways, and let it go on."""
    undisturbed = case.build(tmp_path / "undisturbed", images="embed")
    expected, right = undisturbed.folder, undisturbed.manifest.counts
    count, function = [0], getattr(owner, name)

    def stopping(*arguments):
        if count[0] == calls:
            raise Stopped
        count[0] += 1
        return function(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(owner, name, stopping)
        case.build(tmp_path / "begun", images="embed")
    (tmp_path / "begun.building").rename(tmp_path / "set.building")
    out, found = tmp_path / "damaged" / "set", Counter()
    for name, kind, copy in damaged_copies(tmp_path / "set.building", tmp_path, SEED + calls, flips=2):
        assert copy == out.with_name("set.building")
        what = outcome(lambda: case.build(out, images="embed").manifest.counts, right)
        found[what.split()[0]] += 1
        if what == "right":
            assert_same_folders(expected, out)
        else:
            assert named(what, copy, name, kind) and "delete" in what, f"{kind} of {name}: {what}"
    assert found["refused:"] >= 5 and found["right"] >= 10, found
