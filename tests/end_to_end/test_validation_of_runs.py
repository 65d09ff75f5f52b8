"""Runs that are validated, as users start them: training is the same to the bit, also resumed; the best is kept."""

from __future__ import annotations

import json

import pytest

from helpers.held_runs import held
from helpers.tool_runs import command, kill, read_metrics, run, settings, started, wait_until
from megatron_v2pe.checkpoint.best import BEST_FILE
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.hold_out import HoldOut

STEPS = 6
VALIDATED = {"validation__interval": 2, "validation__keep_best": 1, "checkpoint__keep_latest": 1}


@pytest.fixture(scope="module")
def lists(tiny, tmp_path_factory):
    """Two data lists that divide the samples as `validation.share 0.2` does: what trains, and what is held out."""
    folder = tmp_path_factory.mktemp("lists")
    meta = tiny / "data" / "meta.json"
    (dataset,) = read_data_list(meta)
    held = HoldOut(0.2, 1234).held(dataset.name, dataset.line_numbers)
    rows = (tiny / "data" / "all.jsonl").read_text().splitlines()
    for name, chosen in (("train", ~held), ("held", held)):
        (folder / f"{name}.jsonl").write_text(
            "".join(row + "\n" for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen)
        )
        entry = {**json.loads(meta.read_text())["all"], "annotation": str(folder / f"{name}.jsonl")}
        (folder / f"{name}.json").write_text(json.dumps({"all": entry}))
    return folder


@pytest.fixture(scope="module")
def trained(tiny):
    def line(folder, **changes):
        values = {"train__train_steps": STEPS, "train__global_batch_size": 2, "checkpoint__save_interval": 3} | changes
        return command("tools/train.py", *settings(tiny, folder, **values))

    def train(folder, status=0, **changes):
        finished = run(line(folder, **changes), folder.with_suffix(".log"))
        assert finished.status == status, finished.output[-4000:]
        return finished.output if status else read_metrics(folder)

    train.line = line
    return train


def learned(rows):
    return [(row["iteration"], row["loss"], row["grad_norm"], row["lr"], row["tokens"]) for row in rows]


def validated(rows):
    """Losses of validation by step."""
    return {
        row["iteration"]: {name: value for name, value in row.items() if name.startswith("validation/loss")}
        for row in rows
        if "validation/loss" in row
    }


def checkpoints(folder):
    return sorted(int(path.name.removeprefix("iter_")) for path in folder.glob("iter_*"))


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """A run with a share held out, validated every two steps; it learns, so the last validation is the best."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(folder, validation__share=0.2, **VALIDATED)


@pytest.mark.slow
def test_training_is_the_same_with_validation_and_without(whole, lists, trained, tmp_path):
    """With a share held out a run trains as on a list without these samples, validated or not, to the bit."""
    rows = trained(tmp_path / "without", data__meta_path=lists / "train.json")
    assert learned(rows) == learned(whole[1]) and validated(rows) == {}
    assert list(validated(whole[1])) == [2, 4, 6] and all(row["validation/seconds"] > 0 for row in whole[1][1::2])
    both = {"data__meta_path": lists / "train.json", "validation__meta_path": lists / "held.json"}
    rows = trained(tmp_path / "lists", **both, **VALIDATED)
    assert learned(rows) == learned(whole[1]) and list(validated(rows)) == [2, 4, 6]


def kill_while_step_four_is_saved(line, folder):
    """Kill a run after the validation of step 4, which is the best so far, before or after its checkpoint is there."""
    log = folder.with_suffix(".killed.log")
    with held(5, folder.with_suffix(".held")) as setting, started([*line, setting], log) as process:
        wait_until(lambda: '"4"' in (folder / BEST_FILE).read_text(), [process], log)
        kill(process)
    assert not (folder / "iter_0000006").exists()


@pytest.mark.slow
def test_a_run_that_goes_on_validates_and_keeps_the_same(whole, trained, tmp_path):
    folder = tmp_path / "run"
    trained(folder, validation__share=0.2, train__exit_step=3, **VALIDATED)
    assert checkpoints(folder) == [2, 3], "the newest, and the best of those that were validated"
    kill_while_step_four_is_saved(trained.line(folder, validation__share=0.2, **VALIDATED), folder)
    rows = trained(folder, validation__share=0.2, **VALIDATED)
    assert learned(rows) == learned(whole[1]) and validated(rows) == validated(whole[1])
    assert (folder / BEST_FILE).read_text() == (whole[0] / BEST_FILE).read_text()
    states = [json.loads((one / "iter_0000006" / "training_state.json").read_text()) for one in (folder, whole[0])]
    assert states[0]["after_steps"]["validation"] == states[1]["after_steps"]["validation"]
    changed = trained(folder, status=2, validation__share=0.2, validation__seed=5, train__train_steps=9, **VALIDATED)
    assert "held out other samples" in changed and "have been trained" in changed
    changed = trained(folder, status=2, validation__share=0.3, train__train_steps=9, **VALIDATED)
    assert "trained on other data" in changed


@pytest.mark.slow
def test_the_best_checkpoint_survives_and_has_a_name(whole, lists, trained, tmp_path):
    """The largest loss is asked for, which a run that learns has first: rotation leaves that checkpoint alone."""
    folder = tmp_path / "run"
    worst = {**VALIDATED, "validation__greater_is_better": True, "validation__best_by": "validation/loss/all"}
    rows = trained(folder, validation__share=0.2, **worst)
    assert checkpoints(folder) == [2, 6]
    alone = {"validation__only": True, "model__model_name_or_path": folder / "best", "checkpoint__save": "none"}
    log = tmp_path / "only.log"
    words = [word for word in settings(folder, folder, validation__share=0.2, **alone)]
    words = [word for word in words if not word.startswith(("data.meta_path", "logging"))]
    meta = json.loads((folder / "iter_0000002" / "training_state.json").read_text())["settings"]["data"]["meta_path"]
    finished = run(command("tools/train.py", *words, f"data.meta_path={meta}"), log)
    assert finished.status == 0, finished.output[-3000:]
    told = float(finished.output.split("validation/loss ")[1].split(",")[0])
    assert told == pytest.approx(rows[1]["validation/loss"], rel=1e-6) and "step 1/" not in finished.output


def test_validation_data_that_are_trained_on_are_refused_and_counted(lists, trained, tiny, tmp_path):
    refused = trained(tmp_path / "run", status=2, validation__meta_path=lists / "held.json")
    assert "5 validation samples are trained on\n" in refused
    assert "\n  data set 'all': 5 of 5 samples, 0 by their very line, 5 by" in refused
    assert "--validation.allow-overlap" in refused and not (tmp_path / "run").exists(), "it leaves something behind"
