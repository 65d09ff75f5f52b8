"""The training tool as users run it: stopped, killed, resumed, in every layout, exported."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal

import pytest

from helpers.held_runs import held
from helpers.tool_runs import command, kill, read_metrics, run, settings, started, wait_until
from megatron_v2pe.train.health import rank_seconds
from megatron_v2pe.workshop.synthetic.small_data import write_dataset

STEPS, INTERVAL = 8, 3
TP2 = {"parallel__tensor_model_parallel_size": 2, "parallel__sequence_parallel": True}
WATCHED = {
    "health__interval": 2,
    "health__attention_interval": 2,
    "health__divergence_interval": 2,
    "health__window": 4,
}
LAYOUTS = {
    "one": (1, {}),
    "pp2": (2, {"parallel__pipeline_model_parallel_size": 2}),
    "dp2": (
        2,
        {"parallel__overlap_grad_reduce": True, "parallel__overlap_param_gather": True, "train__recompute": "full"},
    ),
    "cp2": (2, {"parallel__context_parallel_size": 2}),
    "cp2_a2a": (2, {"parallel__context_parallel_size": 2, "parallel__cp_comm_type": "a2a"}),
    "tp2_replicated_vision": (
        2,
        {"parallel__tensor_model_parallel_size": 2, "parallel__vision_parallel": "replicated"},
    ),
}


def line(tiny, save, processes=2, **changes):
    run_settings = {"train__train_steps": STEPS, "train__global_batch_size": 2, "checkpoint__save_interval": INTERVAL}
    all_settings = run_settings | WATCHED | changes
    return command("tools/train.py", *settings(tiny, save, **all_settings), processes=processes)


def trained(tiny, folder, processes=2, **changes):
    finished = run(line(tiny, folder, processes, **changes), folder.with_suffix(".log"))
    assert finished.status == 0, finished.output[-4000:]
    return read_metrics(folder)


def measured(name):
    """Whether a figure of health is one of time."""
    return name.startswith((rank_seconds.SECONDS, rank_seconds.SLOWEST))


def told(rows):
    """What must not depend on how a run was interrupted."""
    names = ("iteration", "loss", "grad_norm", "lr", "tokens", "tiles")
    watched = [{name: row[name] for name in row if name.startswith("health/") and not measured(name)} for row in rows]
    return [(*(row[name] for name in names), health) for row, health in zip(rows, watched, strict=True)]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted run: its folder and metrics."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(tiny, folder, **TP2, health__profile_steps="2:3")


@pytest.mark.slow
def test_a_run_writes_what_it_promises(whole):
    folder, rows = whole
    assert [row["iteration"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["lr"] == 0 and all(row["grad_norm"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    assert sum(row["tiles"] for row in rows) > 0 and all(row["memory_gib"] > 0 for row in rows)
    assert list((folder / "logs").glob("**/events.out.tfevents.*"))
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith("iter_"))
    assert names == ["iter_0000006", "iter_0000008"], "the two newest are kept"
    assert (folder / "iter_0000008" / "config.yaml").is_file()


@pytest.mark.slow
def test_a_run_says_how_healthy_it_is(whole):
    folder, rows = whole
    for number, row in enumerate(rows, 1):
        assert 0.1 < row["host_memory_gib"] < 16 and 0 <= row["data_wait_seconds"] <= row["seconds"]
        assert row["health/grad_norm/language_model"] > 0 and row["health/skipped_steps"] == 0
        now_and_then = ("health/weight_norm/vision_model", "health/attention_logits_max/layer_2", "health/diverged")
        assert all((name in row) == (number % 2 == 0) for name in now_and_then)
    assert rows[-1]["health/diverged"] == 0
    (trace,) = (folder / "logs" / "profile").iterdir()
    assert trace.name == "steps-2-3-rank-0.json.gz", "rank 0 alone by default"
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names


@pytest.mark.slow
def test_stop_and_resume(tiny, whole, tmp_path):
    trained(tiny, tmp_path / "run", train__exit_step=4, **TP2)
    assert told(trained(tiny, tmp_path / "run", **TP2)) == told(whole[1])


@pytest.mark.slow
def test_going_on_from_a_chosen_checkpoint_in_another_folder(tiny, whole, tmp_path):
    """`checkpoint.load` names step 6 of a run that went on to step 8."""
    rows = trained(tiny, tmp_path / "run", checkpoint__load=whole[0] / "iter_0000006", **TP2)
    assert told(rows) == told(whole[1][6:])


@pytest.mark.slow
def test_a_run_that_starts_from_its_own_folder_outlives_the_checkpoint_it_started_from(tiny, tmp_path):
    """Kind of fault: the folder named as model is too old to be kept, and the next checkpoint takes its files there."""
    folder = tmp_path / "run"
    trained(tiny, folder, 0, train__train_steps=1)
    often = {"checkpoint__save_interval": 1, "checkpoint__keep_latest": 1}
    trained(tiny, folder, 0, model__model_name_or_path=folder, train__train_steps=4, **often)
    names = sorted(path.name for path in folder.glob("iter_*"))
    assert names == ["iter_0000004"] and (folder / names[0] / "hf" / "layout.json").is_file()


@pytest.mark.slow
def test_kill_at_any_moment_and_resume(tiny, whole, tmp_path):
    """SIGKILL while step 6's checkpoint is being written: the one of step 3 stays, and the run goes on from it."""
    folder = tmp_path / "run"
    log, places = tmp_path / "log", [folder / ".iter_0000006.writing", folder / "iter_0000006"]
    with held(7, tmp_path / "held") as setting, started([*line(tiny, folder, **TP2), setting], log) as process:
        wait_until(lambda: any(place.exists() for place in places), [process], log)
        kill(process)
    assert (folder / "latest_checkpointed_iteration.txt").read_text().strip() in ("3", "6")
    assert told(trained(tiny, folder, **TP2)) == told(whole[1])
    assert not list(folder.glob(".iter_*"))


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(tiny, whole, tmp_path):
    """The whole process group is asked to stop, reading processes included."""
    folder = tmp_path / "run"
    slow = {"checkpoint__save_interval": 1000, "data__num_workers": 2}
    log = tmp_path / "log"
    with held(2, tmp_path / "held") as setting, started([*line(tiny, folder, **slow, **TP2), setting], log) as process:
        wait_until((tmp_path / "held" / "held").exists, [process], log)
        os.kill(process.pid, signal.SIGTERM)
        process.wait(300)
    done = int((folder / "latest_checkpointed_iteration.txt").read_text())
    assert done == len(read_metrics(folder)) < STEPS
    assert told(trained(tiny, folder, **TP2)) == told(whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_sees_the_same_samples_and_losses(tiny, whole, tmp_path, name):
    processes, layout = LAYOUTS[name]
    rows = trained(tiny, tmp_path / "run", processes, train__exit_step=4, **layout)
    for ours, theirs in zip(rows, whole[1][:4], strict=True):
        for name in ("tokens", "tiles", "packs"):
            assert ours[name] == theirs[name]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # measured 3e-7
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)  # measured 3e-7


@pytest.mark.slow
def test_bad_data_on_one_rank_stops_all_and_loses_nothing(tiny, tmp_path):
    """Images found damaged when they are cut count over all ranks; what was learned before is saved."""
    meta = write_dataset(tmp_path / "data")
    for number in (3, 4):
        image = meta.parent / "image" / f"{number}.png"
        image.write_bytes(image.read_bytes()[:200])
    changes = {"data__meta_path": meta, "data__max_skipped_samples": 9, "checkpoint__save_interval": 1000}
    finished = run(line(tiny, tmp_path / "run", **changes), tmp_path / "log")
    assert finished.status != 0
    assert re.search(r"1\d bad samples over all ranks, data.max_skipped_samples allows 9", finished.output)
    assert "damaged image" in finished.output and 'Traceback (most recent call last):\n  File "/' not in finished.output
    rows = read_metrics(tmp_path / "run")
    done = int((tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text())
    assert done == len(rows) > 0
    more = {**changes, "data__max_skipped_samples": 1000}
    resumed = trained(tiny, tmp_path / "run", **more)
    assert told(resumed) == told(trained(tiny, tmp_path / "at_once", **more))
    state = json.loads((tmp_path / "run" / f"iter_{STEPS:07d}" / "training_state.json").read_text())
    at_once = json.loads((tmp_path / "at_once" / f"iter_{STEPS:07d}" / "training_state.json").read_text())
    assert state["loader"] == at_once["loader"] and sum(state["loader"]["skipped"].values()) > 9


@pytest.mark.slow
def test_export_and_ask(whole, tmp_path):
    folder, _ = whole
    tool = command("tools/convert_checkpoint.py", "mcore-to-hf", str(folder), str(tmp_path / "hf"))
    finished = run(tool, tmp_path / "log")
    assert finished.status == 0, finished.output
    meta = write_dataset(tmp_path / "data", lines=3)
    asked = command(
        "examples/quickstart/ask.py", str(tmp_path / "hf"), str(meta), "--at-least", "0", "--window", "1000"
    )
    answered = run(asked, tmp_path / "log2")
    assert answered.status == 0 and "what do you see" in answered.output, answered.output
