"""Validation data that are trained on are found and counted: the very line, or the same content in another line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.data_cases import every_kind, turns
from megatron_v2pe.data import overlap as overlap_module
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.hold_out import HoldOut
from megatron_v2pe.data.overlap import IndexedTraining, find_overlap, overlap_words, refusal
from megatron_v2pe.data.validation_sets import ListedValidationSet, open_validation_sets


@pytest.fixture
def case(tmp_path, tokenizer):
    return every_kind(tmp_path / "data", tokenizer)


def validation_of(case, tmp_path, rows, name="val", **entry):
    """Write a data list of validation samples and open it."""
    path = tmp_path / "val.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    meta = tmp_path / "val.json"
    usual = {"annotation": str(path), "root": str(tmp_path / "data" / "image"), "repeat_time": 1}
    meta.write_text(json.dumps({name: {**usual, "data_augment": False, **entry}}))
    return [ListedValidationSet(dataset, case.encoder) for dataset in read_data_list(meta)]


def rows_of(tmp_path):
    """One line of training written otherwise, one with another picture, one of its own."""
    line = json.loads((tmp_path / "data" / "all.jsonl").read_text().splitlines()[3])
    again = json.dumps({"id": "copied", **line}, indent=None, separators=(", ", " : "))
    other = json.dumps({**line, "image": "5.png"})
    assert line["image"] != "5.png"
    return [again, other, json.dumps({"conversations": turns("never seen", "indeed")})]


@pytest.mark.parametrize("form", ["list", "indexed"])
def test_the_same_content_is_found_whatever_the_line_looks_like(case, tmp_path, form):
    sets = validation_of(case, tmp_path, rows_of(tmp_path))
    trained = read_data_list(case.meta) if form == "list" else IndexedTraining(case.build(tmp_path / "set"))
    (found,) = find_overlap(sets, trained)
    assert (found.count, found.samples, list(found.same_content), found.same_line) == (1, 3, [0], {})
    words = overlap_words([found], sets)
    assert "1 of 3 validation samples of data set 'val'" in words and "all.jsonl:4 (all)" in words


@pytest.mark.parametrize("form", ["list", "indexed"])
def test_the_same_line_of_the_same_file_is_found_under_any_path(case, tmp_path, form):
    trained = read_data_list(case.meta) if form == "list" else IndexedTraining(case.build(tmp_path / "set"))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "data" / "more.jsonl")
    sets = validation_of(case, tmp_path, [], annotation=str(tmp_path / "link.jsonl"))
    (found,) = find_overlap(sets, trained)
    assert (len(found.same_line), len(found.same_content), found.samples) == (4, 0, 4)


@pytest.mark.parametrize("form", ["list", "indexed"])
def test_a_share_that_is_held_out_overlaps_with_nothing_but_copies(case, tmp_path, form):
    hold_out = HoldOut(0.3, 2)

    def found():
        config = case.encoder.config
        if form == "list":
            trained = hold_out.training_part(read_data_list(case.meta))
        else:
            samples = case.build(tmp_path / f"set{len(list(tmp_path.iterdir()))}")
            trained = IndexedTraining(samples, hold_out.training_samples(samples)[1])
            config = type(config)(**{**config.__dict__, "meta_path": "", "indexed_path": str(samples.folder)})
        sets = open_validation_sets(config, case.encoder, hold_out, None, 2)
        return find_overlap(sets, trained), sets

    overlaps, sets = found()
    assert overlaps == [] and sum(map(len, sets)) == 10
    lists = json.loads(case.meta.read_text())  # the same file twice: what one holds out the other trains
    case.meta.write_text(json.dumps({**lists, "again": lists["all"]}))
    overlaps, sets = found()
    counts = {one.name: one.count for one in overlaps}
    assert 0 < counts["all"] <= 9 and 0 < counts["again"] <= 9 and "more" not in counts
    message = refusal(overlaps, sets, held_out=True)
    assert f"{counts['all']} of 9" in message and "take the copies out" in message and "allow-overlap" in message
    first, *rest = message.splitlines()
    assert first == f"{sum(counts.values())} validation samples are trained on"
    examples = [line for line in rest if line.startswith("    ") and ": trained as " in line]
    assert len(examples) == sum(min(count, 3) for count in counts.values()) and max(map(len, rest)) < 400
    assert f"    and {counts['all'] - 3} more" in rest and rest[-3] == "what to do next:"


def test_annotations_too_large_are_compared_by_line_alone(case, tmp_path, monkeypatch):
    monkeypatch.setattr(overlap_module, "MOST_BYTES", 10)
    assert find_overlap(validation_of(case, tmp_path, rows_of(tmp_path)), read_data_list(case.meta)) == []
    sets = validation_of(case, tmp_path, [], annotation=str(tmp_path / "data" / "more.jsonl"))
    (found,) = find_overlap(sets, read_data_list(case.meta))
    assert found.count == 4


def test_lengths_that_are_alike_are_told_apart_by_content(case, tmp_path):
    """Kind of fault: of an indexed set only samples of the same lengths are looked at; they need not be the same."""
    samples = case.build(tmp_path / "set")
    line = json.loads((tmp_path / "data" / "all.jsonl").read_text().splitlines()[2])
    swapped = json.dumps(line["conversations"]).replace("question 2", "question 3")
    sets = validation_of(case, tmp_path, [json.dumps({"conversations": json.loads(swapped)})])
    number = int(np.flatnonzero(samples.lines == 3)[0])
    assert sets[0].encoded(0).num_tokens == samples.num_tokens[number]
    assert find_overlap(sets, IndexedTraining(samples)) == []
