"""The record of a run: a damaged one costs neither the run nor what it holds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from megatron_v2pe.train.data_counts import DataCounts
from megatron_v2pe.train.page.record_file import RECORD, read_record
from megatron_v2pe.train.run_record import UNREADABLE, RunFacts, RunRecord

FACTS = RunFacts(settings={}, model="small", where="cpu", layout="one", start=5, train_steps=9, micro_batches=1)


@pytest.mark.parametrize("content", ["{", json.dumps({"form": 99}), json.dumps({"packs": [{}]})])
def test_a_record_that_cannot_be_read_is_kept_and_another_begins(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    feed = SimpleNamespace(drawn=DataCounts.nothing(["photos"]), skipped=lambda: ({}, []), watch=None)
    work = RunRecord(tmp_path, FACTS, feed, None, None, lambda: None)  # type: ignore[arg-type]
    work.saved(7)
    record = read_record(tmp_path / RECORD)
    assert (record.steps, len(record.sessions)) == (7, 1)
    assert (tmp_path / UNREADABLE).read_text() == content
