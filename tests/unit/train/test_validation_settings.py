"""Settings of a validation that cannot be are refused by name, and its data are looked at before a run."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.indexed.build import BuildOptions, build
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.preflight import validation as preflight
from megatron_v2pe.train.preflight.run import inspect_run
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset

FITS = "data.max_seq_length=400 data.max_packed_tokens=700 data.num_images_expected=20 train.device=cpu".split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("share=0.1 meta_path=a.json", "validation.meta_path and validation.share are both set"),
        ("indexed_path=set", "the run trains on a data list"),
        ("keep_best=2", "nothing to validate on"),
        ("only=true", "nothing to validate on"),
        ("at_start=true", "nothing to validate on"),
        ("share=0.1 max_packed_tokens=100", "max_packed_tokens 100 is below data.max_seq_length 400"),
        ("share=0.1 best_by=loss", "best_by is 'loss', expected validation/loss"),
        ("share=0.1 keep_best=1 checkpoint.save=none", "but nothing is saved"),
        ("share=1", "validation.share is 1"),
        ("intervall=3", "did you mean validation.interval"),
    ],
)
def test_settings_that_cannot_be_are_named(words, said):
    named = [word if word.startswith("checkpoint.") else f"validation.{word}" for word in words.split()]
    line = ["model.model_name_or_path=a", "data.meta_path=b.json", "checkpoint.save=run", *FITS, *named]
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        cli.read_command(line, RECIPES, 1)


@pytest.fixture(scope="module")
def source(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf")
    write_dataset(folder / "data")
    rows = (folder / "data" / "all.jsonl").read_text().replace("answer", "another answer").splitlines()
    (folder / "own.jsonl").write_text("\n".join(rows[:6]) + "\n")
    entry = {"annotation": str(folder / "own.jsonl"), "root": str(folder / "data" / "image"), "repeat_time": 1}
    (folder / "own.json").write_text(json.dumps({"own": {**entry, "data_augment": False}}))
    return folder


@pytest.fixture
def look(source, tmp_path):
    def run(*words, **paths):
        named = {"model.model_name_or_path": source / "hf", "data.meta_path": source / "data" / "meta.json"} | paths
        line = [f"{name}={value}" for name, value in named.items()]
        command = cli.read_command([*line, f"checkpoint.save={tmp_path / 'run'}", *FITS, *words], RECIPES, 1)
        found = inspect_run(command.config)
        return "\n".join(found.right + found.doubts), "\n".join(map(str, found.problems))

    return run


def test_a_dry_run_says_what_is_validated_on(look, source):
    right, wrong = look("validation.share=0.2", "validation.interval=none")
    assert wrong == "" and "18 samples an epoch" in right and "1 set, 5 samples, none of them trained on" in right
    assert "a share of 0.2 held out of training" in right and "at the end; 5 samples read" in right
    right, wrong = look(f"validation.meta_path={source / 'own.json'}")
    assert wrong == "" and "23 samples an epoch" in right and "1 set, 6 samples, none of them trained on" in right


def test_what_is_missing_or_trained_on_is_refused_before_the_run(look, source, tmp_path, monkeypatch):
    assert "nowhere.json: cannot be read" in look("validation.meta_path=nowhere.json")[1]
    lists = json.loads((source / "own.json").read_text())
    (tmp_path / "lost.json").write_text(json.dumps({"own": {**lists["own"], "root": "elsewhere"}}))
    wrong = look(f"validation.meta_path={tmp_path / 'lost.json'}")[1]
    assert "of validation looked at cannot be used" in wrong and "elsewhere" in wrong
    same = f"validation.meta_path={source / 'data' / 'meta.json'}"
    right, wrong = look(same)
    assert "data set 'all': 23 of 23 samples, 23 by their very line" in wrong
    right, wrong = look(same, "validation.allow_overlap=true")
    assert wrong == "" and "validation.allow_overlap: 23 of 23" in right
    monkeypatch.setattr(preflight, "MOST_BYTES", 1)
    assert "not yet compared with training" in look(same)[0], "the run itself compares larger lists"
    wrong = look("validation.share=0.2", "validation.keep_best=1", "validation.best_by=validation/loss/al")[1]
    assert "did you mean validation/loss/all" in wrong


def test_an_indexed_set_is_looked_at_as_well(look, source, tmp_path):
    config = cli.read_command(
        [f"model.model_name_or_path={source / 'hf'}", f"data.meta_path={source / 'own.json'}", *FITS], RECIPES, 1
    ).config
    encoder = inspect_run(config).encoder
    assert encoder is not None and isinstance(encoder.tokenizer, Tokenizer)
    for name, meta in (("own", source / "own.json"), ("all", source / "data" / "meta.json")):
        build(read_data_list(meta), encoder, BuildOptions(str(tmp_path / name), 0), {})
    indexed = {"data.meta_path": "", "data.indexed_path": tmp_path / "all"}
    for words in ("share=0.2", f"indexed_path={tmp_path / 'own'}", f"meta_path={source / 'own.json'}"):
        right, wrong = look(f"validation.{words}", **indexed)
        samples = "5 samples" if "share" in words else "6 samples"
        assert wrong == "" and f"1 set, {samples}, none of them trained on" in right
    assert "23 of 23" in look(f"validation.indexed_path={tmp_path / 'all'}", **indexed)[1]
