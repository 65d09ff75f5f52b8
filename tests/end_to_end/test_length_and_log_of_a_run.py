"""A run of so many epochs, as a user starts it: samples seen as often, over a resume; its log, without a bar."""

from __future__ import annotations

import json

import pytest

from helpers.tool_runs import command, read_metrics, run, settings
from megatron_v2pe.workshop.synthetic.small_data import write_dataset

EPOCHS = 2


def line(tiny, meta, save, processes, *more, **changes):
    values = {"data__meta_path": meta, "checkpoint__save_interval": None, **changes}
    words = [word for word in settings(tiny, save, **values) if "train_steps" not in word]
    return command("tools/train.py", *words, "--num_train_epochs", str(EPOCHS), *more, processes=processes)


@pytest.mark.slow
def test_epochs_are_kept_over_a_resume_with_other_packs_a_step(tiny, tmp_path):
    """The 23 samples have their tokens counted twice, on two ranks (the last step not full) and then on one."""
    meta, save = write_dataset(tmp_path / "data"), tmp_path / "run"
    first = run(
        line(tiny, meta, save, 2, "--group_by_length", "True", train__global_batch_size=4, train__exit_step=2),
        tmp_path / "first.log",
    )
    assert first.status == 0, first.output[-4000:]
    assert first.output.count("note: --group_by_length True has no effect here") == 1, "one rank says it"
    rest = run(line(tiny, meta, save, 0, train__global_batch_size=3), tmp_path / "rest.log")
    assert rest.status == 0, rest.output[-4000:]
    rows = read_metrics(save)
    whole = run(line(tiny, meta, tmp_path / "whole", 2, train__global_batch_size=2), tmp_path / "whole.log")
    assert whole.status == 0, whole.output[-4000:]
    others = read_metrics(tmp_path / "whole")
    assert sum(row["tokens"] for row in rows) == sum(row["tokens"] for row in others)
    assert sum(row["tiles"] for row in rows) == sum(row["tiles"] for row in others)
    state = json.loads((save / f"iter_{rows[-1]['iteration']:07d}" / "training_state.json").read_text())
    assert state["loader"]["position"] == EPOCHS * 23 and state["loader"]["open"] == []
    done = run(line(tiny, meta, save, 0, train__global_batch_size=3), tmp_path / "done.log")
    assert done.status == 0 and "finished after step" in done.output and len(read_metrics(save)) == len(rows)

    _looks_as_a_log(save, first.output, rest.output, rows)
    _has_counted_every_step_once(save, rows)


def _has_counted_every_step_once(save, rows):
    """The record adds up to the rows over both processes; the only data set's loss is the loss."""
    record = json.loads((save / "logs" / "run_record.json").read_text())
    ((name, counts),) = record["drawn"]["sets"].items()
    assert counts["samples"] == EPOCHS * 23 == sum(record["drawn"]["lengths"]) == sum(record["drawn"]["tiles"])
    assert [counts["tokens"], counts["tiles"]] == [sum(row[one] for row in rows) for one in ("tokens", "tiles")]
    assert [session["from"] for session in record["sessions"]][:2] == [0, 2] and record["asked"] == {name: 23}
    for row in rows:
        assert row[f"loss/{name}"] == pytest.approx(row["loss"], rel=1e-6)  # float32 and float64
    page = (save / "logs" / "run.html").read_text()
    assert "went on" in page and "learned" in page and (save / "logs" / "run.png").is_file()


def _looks_as_a_log(save, first, rest, rows):
    log = (save / "logs" / "train.log").read_text()
    for text in (log, first, rest):
        assert "\r" not in text and "\x1b" not in text
    kept = [text.split(" ", 3)[3] for text in log.splitlines()]
    beginnings = ("model: ", "positions: ", "data: ", "layout: ", "numbers: ", "recompute: ", "length: ", "saved: in ")
    for words in (first, rest):
        assert all(f"INFO {beginning}" in words for beginning in beginnings)
    assert all(any(text.startswith(beginning) for text in kept) for beginning in beginnings)
    assert "1 set, 23 samples an epoch in " in log and f"({EPOCHS} epochs)" in log
    assert "layout: 2 ranks, 2 data parallel" in first and "layout: 1 rank, 1 data parallel" in rest
    assert any(text.startswith("goes on from ") and text.endswith("iter_0000002, step 2") for text in kept)
    assert any(text.startswith("--group_by_length True has no effect here") for text in kept)
    steps = [text for text in kept if text.startswith("step ")]
    assert len(steps) == len(rows)
    for text, row in zip(steps, rows, strict=True):
        assert text.startswith(f"step {row['iteration']}/") and f"  loss {row['loss']:.4f}  lr " in text


@pytest.mark.slow
def test_a_run_that_is_refused_leaves_nothing_behind(tiny, tmp_path):
    meta, save = write_dataset(tmp_path / "data"), tmp_path / "run"
    (tmp_path / "data" / "image" / "1.png").unlink()
    refused = run(line(tiny, meta, save, 0), tmp_path / "log")
    assert refused.status == 2 and "data.max_skipped_samples allows 0" in refused.output
    assert not save.exists(), "counted before anything was trained"
