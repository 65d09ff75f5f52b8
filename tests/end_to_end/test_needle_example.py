"""The needle experiment in a size that learns nothing: every part fits the next, a restart mixes nothing."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from helpers.tool_runs import run
from helpers.warm_python import shared_warm_python

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "needle_on_a_laptop"


@pytest.fixture(scope="module")
def example():
    """The example's modules, as its scripts import each other."""
    sys.path.append(str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


def line(out, *more):
    return [sys.executable, str(EXAMPLE / "run.py"), str(out), *more]


@pytest.fixture(scope="module")
def warm():
    """Every Python the example starts, launchers and their processes included, begins with its imports done."""
    executable = shared_warm_python()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON", executable)
        patch.setenv("PYTHON_EXEC", executable)  # of torchrun
        yield


@pytest.fixture(scope="module")
def smoke(warm, example, tmp_path_factory):
    """The folder of a smoke run that has ended."""
    folder = tmp_path_factory.mktemp("smoke")
    ended = run(line(folder / "out", "--smoke"), folder / "log", timeout=1500)
    assert ended.status == 0, ended.output[-3000:]
    return folder / "out"


@pytest.mark.slow
def test_the_smoke_version_runs(smoke):
    table = (smoke / "table.md").read_text()
    assert "dynamic NTK" in table and "| words |" in table and "not judged" in table
    with open(smoke / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["tokens"] for row in rows} == {"256", "512"} and all(0 <= float(row["right"]) <= 1 for row in rows)
    for name in ("accuracy_by_length.png", "depth_by_length.png"):
        assert (smoke / name).read_bytes()[:4] == b"\x89PNG"
    assert "steps of the first stage: 4; NOT BOUND in seed 0" in table
    for name, steps in (("short", 4), ("default", 2), ("v2pe", 2)):
        logged = (smoke / "seed_0" / name / "logs" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["iteration"] for row in logged] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_finished_experiment_is_told_again_and_nothing_run(smoke, tmp_path):
    table = (smoke / "table.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (smoke / "seed_0").rglob("*") if path.is_file()}
    (smoke / "table.md").unlink()
    again = run(line(smoke, "--smoke"), tmp_path / "log", timeout=1200)
    assert again.status == 0 and again.output.count("done before") == again.output.count("\n[")
    assert (smoke / "table.md").read_text() == table
    assert before == {path: path.stat().st_mtime_ns for path in (smoke / "seed_0").rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["tp=2", "cp=2", "pp=2", "dp=2"])
def test_another_layout_trains_alike(smoke, tmp_path, parallel):
    """The first stage and V2PE's second from the same start over the same documents."""
    from settings import SMOKE
    from steps import Progress, Seed, losses

    (tmp_path / "seed_0").mkdir(parents=True)
    for name in ("start", "indexed_short", "indexed_long"):
        (tmp_path / "seed_0" / name).symlink_to(smoke / "seed_0" / name)
    seed = Seed(tmp_path, replace(SMOKE, parallel=parallel), 0, Progress(tmp_path, 0))
    trained = {"short": seed.train_short(SMOKE.short_parts), **seed.train_long("v2pe")}
    for name, found in trained.items():
        pairs = zip(losses(smoke / "seed_0" / name), found, strict=True)
        assert max(abs(a - b) / a for a, b in pairs) < 1e-5, name


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    refused = run(line(tmp_path, "--smoke"), tmp_path / "log", timeout=1200)
    assert refused.status == 2 and "in use" in refused.output and not (tmp_path / "done").exists()


def noted(folder, **changes):
    """Settle a folder as a run of the smoke version does; return what it has noted."""
    from experiment_folder import NOTE, settle
    from settings import SMOKE

    settle(folder, asdict(replace(SMOKE, **changes)))
    return json.loads((folder / NOTE).read_text())


def test_a_folder_keeps_to_its_experiment_and_may_grow(example, tmp_path):
    from steps import StepError

    out = tmp_path / "out"
    assert noted(out) == noted(out)
    with pytest.raises(
        StepError, match="another experiment: parallel dp=2, then side by side there, tp=2 now. Name another folder"
    ):
        noted(out, parallel="tp=2")
    with pytest.raises(StepError, match="long_steps 2 there, 3 now; short_part 2 there, 5 now"):
        noted(out, short_part=5, long_steps=3)
    assert noted(out, seeds=3)["seeds"] == 3
    grown = noted(out, seeds=2, longest=4)  # the third seed is not forgotten
    assert (grown["seeds"], grown["longest"]) == (3, 4)
    assert noted(out) == grown


def test_an_edited_recipe_does_not_go_on_with_old_results(example, tmp_path, monkeypatch):
    import experiment_folder
    from steps import StepError

    noted(tmp_path / "out")
    monkeypatch.setattr(experiment_folder, "RECIPE", ("task.py",))  # another fingerprint
    with pytest.raises(StepError, match="another experiment: recipe "):
        noted(tmp_path / "out")


def test_losses_are_compared_with_those_of_the_same_experiment(example, tmp_path):
    from experiment_folder import check_comparable
    from steps import StepError

    noted(tmp_path / "dp", seeds=2)
    for name, changes in {
        "tp": {"parallel": "tp=2", "questions": 3},
        "more": {"seeds": 3},
        "long": {"long_steps": 3},
    }.items():
        noted(tmp_path / name, **changes)
    check_comparable(tmp_path / "tp", tmp_path / "dp")
    with pytest.raises(StepError, match="it has 2 seeds, 3 are asked for"):
        check_comparable(tmp_path / "more", tmp_path / "dp")
    with pytest.raises(StepError, match="another experiment, its long_steps differ"):
        check_comparable(tmp_path / "long", tmp_path / "dp")
    with pytest.raises(StepError, match="holds no experiment"):
        check_comparable(tmp_path / "tp", tmp_path)


def test_a_second_run_in_a_folder_is_refused(example, tmp_path):
    from experiment_folder import locked
    from steps import StepError

    with locked(tmp_path), pytest.raises(StepError, match="a run goes on there"), locked(tmp_path):
        pass


def test_a_lane_ends_where_a_command_fails_and_the_other_goes_on(example, tmp_path, capfd):
    from commands import Command, execute_lanes

    def shell(words, messages=None):
        return Command(["sh", "-c", f"cd {tmp_path}; {words}"], {"WORD": "given"}, messages)

    failing = shell("echo because >&2; exit 7", tmp_path / "log")
    lanes = [shell("touch first"), failing, shell("touch never")], [shell("sleep 0.3"), shell("touch $WORD")]
    with pytest.raises(subprocess.CalledProcessError, match="status 7"):
        execute_lanes(*lanes)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "log", "given"}
    assert "because" in capfd.readouterr().err and (tmp_path / "log").read_text() == "because\n"


def test_an_interruption_ends_all_lanes(example, tmp_path, monkeypatch):
    import commands

    def interrupted(ends):
        while not all((tmp_path / name).exists() for name in "ab"):
            time.sleep(0.01)
        raise KeyboardInterrupt

    terminate = subprocess.Popen.terminate

    def slowly(child):  # its lane sees the end before the next child is asked to end
        terminate(child)
        child.wait()
        time.sleep(0.1)

    monkeypatch.setattr(commands, "wait", interrupted)
    monkeypatch.setattr(subprocess.Popen, "terminate", slowly)
    lanes = [
        [commands.Command(["sh", "-c", f"touch {tmp_path / name}; exec sleep 600"]), commands.Command(["touch", "c"])]
        for name in "ab"
    ]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        commands.execute_lanes(*lanes)
    assert time.monotonic() - began < 300 and not (commands.ROOT / "c").exists()


def test_missing_packages_are_named(tmp_path):
    command = [sys.executable, "-S", *line(tmp_path / "out")[1:]]  # without site-packages
    refused = run(command, tmp_path / "log", timeout=600)
    assert refused.status == 2 and "missing: torch, megatron.core" in refused.output and "run.sh" in refused.output
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def made(example, tmp_path_factory):
    """Pictures, a model with its tokenizer, and what lines cost in its tokens."""
    import pictures
    import start_model

    folder = tmp_path_factory.mktemp("needle")
    pictures.write(folder / "images")
    return folder, start_model.make(folder / "start", seed=0, model="internlm2")


def test_training_and_test_pictures_are_disjoint(made):
    import pictures

    folder, _ = made
    for kind in ("digits", "pages"):
        files = {split: list((folder / "images" / kind / split).iterdir()) for split in pictures.SPLITS}
        assert len(files["train"]) in (1397, 480) and len(files["test"]) in (400, 240)
        contents = {split: {path.read_bytes() for path in paths} for split, paths in files.items()}
        assert not contents["train"] & contents["test"]
    crops = {split: {tile.tobytes() for tile in pictures.crops(split)} for split in pictures.SPLITS}
    assert len(crops["train"] & crops["test"]) <= 0.01 * len(crops["test"])  # plain sky is plain sky


@pytest.mark.parametrize("page_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [256, 257, 700, 2048])
def test_prompts_have_exactly_as_many_tokens_as_asked_for(made, page_share, tokens):
    import pictures
    from task import TOKENS_PER_TILE, document
    from write_data import TO_SAY

    from megatron_v2pe.data.conversation import BEGUN, get_template
    from megatron_v2pe.data.tokenize import encode_conversation
    from megatron_v2pe.data.tokenizer import Tokenizer

    folder, costs = made
    tokenizer, template = Tokenizer.from_folder(folder / "start"), get_template("internlm2-chat")
    split = pictures.read(folder / "images", "test")
    for seed in range(5):
        room = tokens - costs.shortest(1) + TO_SAY
        built = document(random.Random(seed), split, room, page_share)
        tiles = [int(Path(path).stem.split("_")[1]) if "pages" in path else 1 for path in built.pictures]
        turns = [("human", built.text + built.names[0]), (BEGUN, built.names[0])]
        ids, _ = encode_conversation(tokenizer, template, turns, tiles, TOKENS_PER_TILE, prompt=True)
        assert len(ids) == tokens
        assert len(set(built.names)) == len(built.digits) == 4 and all(0 <= depth < 1 for depth in built.depths)


def test_training_documents_are_no_longer_than_said(made):
    from start_model import TRAINED_LENGTH
    from write_data import QUESTIONS, write_training

    from megatron_v2pe.data.conversation import get_template
    from megatron_v2pe.data.tokenize import encode_conversation
    from megatron_v2pe.data.tokenizer import Tokenizer

    folder, costs = made
    tokenizer, template = Tokenizer.from_folder(folder / "start"), get_template("internlm2-chat")
    for stage in QUESTIONS:
        write_training(folder, folder / "images", costs, stage, 20, seed=0)
        for row in map(json.loads, (folder / f"{stage}.jsonl").read_text().splitlines()):
            tiles = [int(Path(path).stem.split("_")[1]) if "pages" in path else 1 for path in row["image"]]
            turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
            length = len(encode_conversation(tokenizer, template, turns, tiles, 16)[0])
            assert length == TRAINED_LENGTH if stage == "long" else 200 < length < TRAINED_LENGTH


def test_an_answer_says_the_digit_beside_the_name(made):
    import pictures
    from task import DIGITS, conversation, document

    folder, _ = made
    built = document(random.Random(3), pictures.read(folder / "images", "train"), 300, 0.5)
    before = re.findall(r"(\w*)<image>", built.text)
    assert len(before) == len(built.pictures) and sorted(filter(None, before)) == sorted(built.names)
    for needle, name in enumerate(built.names):
        path = built.pictures[before.index(name)]
        assert built.answer(needle) == f"{name} {DIGITS[int(Path(path).stem.split('_')[1])]}"
        assert built.answer(needle) == f"{name} {built.digit(needle)}"
    turns = conversation(built, [2, 2, 0])
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * 3
    assert turns[2]["value"] == built.names[2] and turns[5]["value"] == built.answer(0)
