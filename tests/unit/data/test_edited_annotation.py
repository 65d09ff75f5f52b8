"""An annotation edited between stop and resume is noticed, whatever the edit; a changed entry of the data list too."""

from __future__ import annotations

import json
import logging
import os
from itertools import islice
from pathlib import Path

import pytest

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.loader import build_loader
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for


@pytest.fixture
def run(meta, tokenizer):
    """Open the loader, take two packs, return its state as a checkpoint holds it."""

    def opened(state=None):
        config = config_for(meta)
        loader = build_loader(
            config, tokenizer, FACTS, StridePolicy("default"), seed=5, dp_rank=0, dp_size=1, state=state
        )
        list(islice(loader, 2))
        return json.loads(json.dumps(loader.state_dict()))

    return opened


@pytest.fixture
def annotation(meta):
    return Path(next(iter(json.loads(meta.read_text()).values()))["annotation"])


def other_word(content):
    return content.replace(b"what do you see", b"what do you saw", 1)


def two_lines_swapped(content):
    lines = content.splitlines(keepends=True)
    return b"".join([lines[1], lines[0], *lines[2:]])


def one_byte_in_the_last_line(content):
    place = content.rindex(b"a")
    return content[:place] + b"e" + content[place + 1 :]


@pytest.mark.parametrize("edit", [other_word, two_lines_swapped, one_byte_in_the_last_line])
def test_an_edit_of_the_same_length_is_refused(run, annotation, edit):
    state, before = run(), annotation.read_bytes()
    times = os.stat(annotation)
    assert edit(before) != before and len(edit(before)) == len(before)
    annotation.write_bytes(edit(before))
    os.utime(annotation, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync -t and some editors leave it
    with pytest.raises(ConfigError) as refused:
        run(state)
    told = str(refused.value)
    assert str(annotation) in told and "changed since the checkpoint was saved" in told
    assert "Put back the data list and the annotations" in told and "--checkpoint.save OTHER" in told
    annotation.write_bytes(before)
    run(state)


def test_lines_added_or_taken_away_are_refused(run, annotation):
    state, before = run(), annotation.read_bytes()
    for edited in (before + before.splitlines(keepends=True)[0], before[: before.rstrip().rindex(b"\n") + 1]):
        annotation.write_bytes(edited)
        with pytest.raises(ConfigError, match="trained on other data.*Put back the data list"):
            run(state)


def test_another_order_is_told_by_what_it_comes_from(run, meta, annotation):
    state, entries, before = run(), json.loads(meta.read_text()), annotation.read_bytes()
    name, entry = next(iter(entries.items()))
    for changed, told in (
        ({name: {**entry, "repeat_time": 2}}, f"data set '{name}': repeat_time was 1.0, is now 2.0"),
        ({name: entry, "more": entry}, "data set 'more' is new"),
        ({"other": entry}, f"data set '{name}' is gone, data set 'other' is new"),
    ):
        meta.write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=f"trained on other data, and cannot go on with this: {told}; it had"):
            run(state)
    meta.write_text(json.dumps(entries))
    annotation.write_bytes(before + before.splitlines(keepends=True)[0])
    with pytest.raises(ConfigError, match=rf"{annotation} \(data set '{name}'\) was edited"):
        run(state)


def test_a_copy_of_the_same_content_goes_on(run, meta, annotation):
    state = run()
    moved = annotation.with_name("moved.jsonl")
    os.rename(annotation, moved)
    meta.write_text(meta.read_text().replace(str(annotation), str(moved)))
    assert run(state)["position"] > state["position"]


def test_a_changed_entry_is_told_and_goes_on(run, meta, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("megatron_v2pe"), "propagate", True)
    state = run()
    entries = json.loads(meta.read_text())
    name = next(iter(entries))
    entries[name]["data_augment"] = not entries[name]["data_augment"]
    meta.write_text(json.dumps(entries))
    with caplog.at_level(logging.WARNING):
        run(state)
    assert any(f"data set {name!r}: data_augment was" in record.getMessage() for record in caplog.records)


def test_states_of_older_versions_go_on(run):
    state = run()
    del state["data"]
    assert run(state)["data"]


def test_the_checksum_is_of_every_byte_and_costs_no_second_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_v2pe.data.annotations._READ_BYTES", 7)
    path = tmp_path / "a.jsonl"
    seen = set()
    for content in (b"{}\n" * 9, b"{}\n" * 8 + b"{} ", b"{}\n" * 8 + b"[]\n", b" " + b"{}\n" * 9):
        path.write_bytes(content)
        dataset = Dataset("d", str(path))
        assert len(dataset) == 9
        path.unlink()
        seen.add(dataset.checksum)
    assert len(seen) == 4
