"""Build an indexed set and train on it as users do: every layout the same, over an epoch's end, through kills."""

from __future__ import annotations

import json
import random
import time

import pytest

from helpers.tool_runs import command, kill, read_metrics, run, settings, started

STEPS = 6
BATCH = 4
"""Packs per step. 23 samples make 7 to 9 packs: each epoch's last step holds packs without tokens."""
LAYOUTS = {
    "dp2": (2, {"v2pe__rope_pos_id_version": "v2pe_fix", "v2pe__rope_pos_id_stride": "1/2"}),
    "cp2": (2, {"parallel__context_parallel_size": 2}),
    "pp2": (2, {"parallel__pipeline_model_parallel_size": 2}),
}


def build(tiny, out, *more):
    arguments = settings(tiny, out.parent / "run")
    tool = command("tools/preprocess_data.py", "--out", str(out), "--workers", "0", *arguments, *more)
    return run(tool, out.with_suffix(".log"))


@pytest.fixture(scope="module")
def indexed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed") / "set"
    built = build(tiny, folder, "v2pe.rope_pos_id_version=v2pe_fix", "v2pe.rope_pos_id_stride=1/2")
    assert built.status == 0, built.output
    assert "23 samples of" in built.output and f"--data.indexed-path {folder}" in built.output
    return folder


def line(tiny, indexed, save, processes, **changes):
    values = {"data__meta_path": "", "data__indexed_path": indexed, "data__packing_window": 16}
    values["v2pe__rope_pos_id_version"] = "recorded"
    values |= {"train__train_steps": STEPS, "train__global_batch_size": BATCH, "checkpoint__save_interval": 2}
    return command("tools/train.py", *settings(tiny, save, **(values | changes)), processes=processes)


def trained(tiny, indexed, folder, processes=0, **changes):
    finished = run(line(tiny, indexed, folder, processes, **changes), folder.with_suffix(".log"))
    assert finished.status == 0, finished.output[-4000:]
    return read_metrics(folder)


@pytest.fixture(scope="module")
def whole(tiny, indexed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(tiny, indexed, folder)


def assert_close(rows, others):
    for ours, theirs in zip(rows, others, strict=True):
        for name in ("tokens", "tiles", "packs"):
            assert ours[name] == theirs[name]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # measured 3e-7
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_an_epoch_holds_every_sample_and_ends_with_a_step(whole, indexed):
    """Tokens of the first epoch's steps are those of the set, though its last step is not full."""
    manifest = json.loads((indexed / "manifest.json").read_text())
    total, steps = 0, 0
    for row in whole[1]:
        total, steps = total + row["tokens"], steps + 1
        if total >= manifest["counts"]["tokens"]:
            break
    assert total == manifest["counts"]["tokens"] and steps in (2, 3)
    state = json.loads((whole[0] / f"iter_{STEPS:07d}" / "training_state.json").read_text())["loader"]
    assert state["epoch"] >= 2 and set(state) == {"epoch", "packs", "skipped", "plan"}
    settings_used = (whole[0] / f"iter_{STEPS:07d}" / "config.yaml").read_text()
    assert "rope_pos_id_stride: 1/2" in settings_used, "what the set recorded, not the word for it"


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_the_same_with_the_recorded_strides_or_equal_ones(tiny, indexed, whole, tmp_path, name):
    processes, layout = LAYOUTS[name]
    assert_close(trained(tiny, indexed, tmp_path / "run", processes, **layout), whole[1])


@pytest.mark.slow
def test_killed_and_resumed_with_other_ranks_and_workers(tiny, indexed, whole, tmp_path):
    moments = random.Random(3)
    folder = tmp_path / "run"
    for attempt, (processes, workers) in enumerate([(2, 2), (0, 2)]):
        tool = line(tiny, indexed, folder, processes, data__num_workers=workers)
        seen = len(read_metrics(folder)) if (folder / "logs" / "metrics.jsonl").is_file() else 0
        with started(tool, tmp_path / f"log{attempt}") as process:
            deadline, wanted = time.monotonic() + 120, seen + moments.randint(1, 2)
            while process.poll() is None and time.monotonic() < deadline:
                if (folder / "logs" / "metrics.jsonl").is_file() and len(read_metrics(folder)) >= wanted:
                    break
                time.sleep(0.01)
            kill(process)
    assert_close(trained(tiny, indexed, folder, 2), whole[1])


def test_wrong_build_commands(tiny, tmp_path):
    missing = build(tiny, tmp_path / "set", "data.meta_path=nowhere.json")
    assert missing.status == 2 and "nowhere.json: cannot be read" in missing.output
    without = run(
        command("tools/preprocess_data.py", "--out", str(tmp_path / "x"), "data.meta_path=x"), tmp_path / "log"
    )
    assert without.status == 2 and "name a checkpoint (--model_name_or_path FOLDER) or a tokenizer" in without.output
    helped = run(command("tools/preprocess_data.py", "--help"), tmp_path / "log")
    assert helped.status == 0 and "--image-check" in helped.output
