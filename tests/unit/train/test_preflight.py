"""A dry run finds what training would refuse, by training's own functions, and says what it did not look at.

What is there and wrong, or named on the command line and not there, ends with status 2. What a recipe names may still
come: it is listed, with status 0. The settings are printed either way.
"""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.indexed.build import BuildOptions, build
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import config_for, write_checkpoint_copy, write_dataset

FITS = "data.max_seq_length=400 data.max_packed_tokens=700 data.num_images_expected=20 train.device=cpu".split()
QUESTION, ANSWER = {"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "yes"}


@pytest.fixture(scope="module")
def source(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf")
    write_dataset(folder / "data")
    return folder


@pytest.fixture
def folder(source, tmp_path, monkeypatch):
    """A copy of checkpoint and data that a test may damage, the current folder an empty one."""
    shutil.copytree(source, tmp_path / "run")
    meta = tmp_path / "run" / "data" / "meta.json"
    meta.write_text(meta.read_text().replace(str(source), str(tmp_path / "run")))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "run"


@pytest.fixture
def dry_run(folder, capsys):
    def run(*words, model="hf", recipe=()):
        paths = (
            []
            if recipe
            else [f"model.model_name_or_path={folder / model}", f"data.meta_path={folder / 'data/meta.json'}"]
        )
        status = cli.main(["--dry-run", *recipe, *FITS, *paths, *words], RECIPES)
        captured = capsys.readouterr()
        comments = [line for line in captured.out.splitlines() if line.startswith("#")]
        assert yaml.safe_load(captured.out)["train"]["device"] == "cpu", "the settings are printed, and nothing else"
        return status, "\n".join(comments), captured.err

    return run


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def llm(folder, **changes):
    path = folder / "hf" / "config.json"
    edit(path, llm_config={**json.loads(path.read_text())["llm_config"], **changes})


def lines(folder, *rows):
    (folder / "data" / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def entry(folder, **changes):
    path = folder / "data" / "meta.json"
    edit(path, all={**json.loads(path.read_text())["all"], **changes})


def test_what_is_right_is_told_and_what_was_not_looked_at(dry_run):
    status, comments, error = dry_run()
    assert status == 0 and error == ""
    assert "hf, an HF checkpoint of a supported architecture" in comments
    assert "# the model: 423,872 parameters, all trained" in comments
    for words in ("layout: it divides", "tokenizer of 335 tokens, template internlm2-chat", "weights: names, shapes"):
        assert words in comments
    assert "1 set, 23 samples an epoch; 23 samples read, with their files" in comments
    assert "# an epoch: 10 packs, 10 steps; 1,000 steps are about 100.00 epochs" in comments
    assert "# not looked at: values of the weights, pixels, other samples" in comments


WRONG = {
    "the model is a file": (None, ["model.model_name_or_path=../run/hf/config.json"], "a file, expected the folder"),
    "the model is no checkpoint": (None, ["model.model_name_or_path=../run/data"], "holds neither config.json"),
    "the model is not there": (None, ["model.model_name_or_path=nowhere"], "no such folder"),
    "another architecture": (lambda f: llm(f, architectures=["MambaForCausalLM"]), [], "'MambaForCausalLM' is not su"),
    "no model_type": (lambda f: (f / "hf" / "config.json").write_text("{}"), [], "config.json"),
    "config.json is no JSON": (lambda f: (f / "hf" / "config.json").write_text("{"), [], "not valid JSON"),
    "what the run states of it": (None, ["--ps_version", "v1"], "ps_version v1 was asked for"),
    "a tokenizer beyond the model": (lambda f: llm(f, vocab_size=50), [], "335 tokens in the tokenizer, 50 rows"),
    "a damaged tokenizer": (lambda f: (f / "hf" / "tokenizer.model").write_bytes(b"x"), [], "tokenizer.model"),
    "a template nobody knows": (None, ["--conv_style", "llama-9"], "llama-9"),
    "a layout that divides nothing": (None, ["parallel.tensor_model_parallel_size=3"], "3 does not divide the 4"),
    "weights of other shapes": (lambda f: llm(f, num_hidden_layers=9), [], "tensors, expected"),
    "the data list is not there": (None, ["data.meta_path=nowhere.json"], "nowhere.json"),
    "the data list is no JSON": (lambda f: (f / "data" / "meta.json").write_text("{"), [], "not valid JSON"),
    "a field nobody knows": (lambda f: entry(f, repeat=2), [], "unknown field 'repeat'"),
    "an annotation is not there": (lambda f: entry(f, annotation="no.jsonl"), [], "no.jsonl: no such file"),
    "an annotation is empty": (lambda f: lines(f), [], "holds no samples"),
    "lines that are no JSON": (lambda f: (f / "data" / "all.jsonl").write_text("a\nb\n"), [], "none of the 2 samples"),
    "images are not there": (lambda f: shutil.rmtree(f / "data" / "image"), [], "0.png: no such image"),
    "two images, one placeholder": (
        lambda f: lines(f, {"image": ["0.png", "1.png"], "conversations": [QUESTION, ANSWER]}), [], "2 images"
    ),
    "samples too long": (
        lambda f: lines(f, {"conversations": [{"from": "human", "value": "a b " * 900}, ANSWER]}), [], "tokens, longer"
    ),
    "an indexed set that is none": (None, ["data.indexed_path=../run/data"], "not a finished indexed data set"),
    "the run's folder is a file": (None, ["checkpoint.save=../run/data/meta.json"], "is a file, expected a folder"),
    "nothing to go on from": (None, ["checkpoint.load=nowhere"], "checkpoint.load nowhere: no such folder"),
    "a package is missing": (None, ["logging.wandb=true"], "the package wandb is not installed"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_training_would_refuse_is_refused(name, folder, dry_run, monkeypatch):
    damage, words, message = WRONG[name]
    monkeypatch.setattr("megatron_v2pe.train.tracking.find_spec", lambda name: None)
    if damage is not None:
        damage(folder)
    status, comments, error = dry_run(*words)
    assert status == 2, comments
    assert message in error and error.startswith("error: ")
    assert "# the run would be refused:" in comments and message in comments


def test_all_that_is_wrong_is_told_at_once(folder, dry_run):
    shutil.rmtree(folder / "data" / "image")
    llm(folder, vocab_size=50)
    _, _, error = dry_run("checkpoint.load=nowhere", "parallel.tensor_model_parallel_size=3")
    assert error.count("error: ") >= 4


def test_samples_that_may_be_skipped_are_counted(folder, dry_run):
    (folder / "data" / "image" / "1.png").unlink()
    assert "data.max_skipped_samples is 0" in dry_run()[2]
    status, comments, error = dry_run("data.max_skipped_samples=9")
    assert status == 0 and error == "" and "of 23 samples cannot be used, data.max_skipped_samples is 9" in comments
    shutil.rmtree(folder / "data" / "image")
    lines(folder, *({"image": "0.png", "conversations": [QUESTION, ANSWER]} for _ in range(10)))
    assert "none of the 10 samples looked at can be used" in dry_run("data.max_skipped_samples=9")[2]
    status, comments, error = dry_run("data.max_skipped_samples=10")
    assert status == 0 and error == "" and "# not refused, but worth a look:" in comments
    assert "#   dataset 'all': none of the 10 samples looked at" in comments


@pytest.mark.parametrize("name", ["internvl2_2b_v2pe_32k", "internvl2_2b_v2pe_256k", "quickstart"])
def test_what_a_recipe_names_may_still_come(name, dry_run):
    more = ["data.max_seq_length=34000", "data.max_packed_tokens=34000"]
    status, comments, error = dry_run(*more, recipe=("--recipe", name))
    assert status == 0 and error == ""
    recipe = RECIPES[name]()
    _, _, absent = comments.partition("# not there yet:")
    assert recipe.model.model_name_or_path in absent and recipe.data.meta_path in absent
    assert "not looked at: the layout against the model, the data" in absent
    assert ("the published list is ready: mkdir -p dataset && cp " in absent) == (name == "internvl2_2b_v2pe_32k")


def test_a_recipes_path_named_again_is_still_the_recipes_and_another_is_not(dry_run):
    recipe = ("--recipe", "quickstart")
    meta = RECIPES["quickstart"]().data.meta_path
    assert dry_run("--meta_path", meta, recipe=recipe)[0] == 0
    status, _, error = dry_run("--meta_path", "mine.json", recipe=recipe)
    assert status == 2 and "mine.json" in error


def test_a_config_alone_is_enough_to_plan_with(folder, dry_run):
    for path in (folder / "hf").iterdir():
        if path.name != "config.json":
            path.unlink()
    status, comments, error = dry_run()
    assert status == 0 and error == ""
    assert "tokenizer.model: the tokenizer's files" in comments and "the weights, *.safetensors" in comments
    assert "not looked at: tokenizer, template" in comments and "# memory of a rank in GiB" in comments
    assert "23 samples read, with their files, without a tokenizer" in comments
    (folder / "data" / "image" / "1.png").unlink()
    assert dry_run()[0] == 2


def test_a_megatron_checkpoint_is_looked_at_as_well(folder, dry_run):
    hf_to_mcore(folder / "hf", folder / "megatron")
    status, comments, error = dry_run(model="megatron")
    assert status == 0 and error == ""
    assert "megatron, a Megatron checkpoint" in comments and "weights: their description" in comments
    (folder / "megatron" / ".metadata").unlink()
    status, _, error = dry_run(model="megatron")
    assert status == 2 and ".metadata is missing" in error


def test_epochs_that_would_not_be_counted_are_refused(folder, dry_run, monkeypatch):
    monkeypatch.setattr("megatron_v2pe.train.epochs.MOST_COUNTED", 10)
    status, _, error = dry_run("--num_train_epochs", "2")
    assert status == 2 and "23 samples, and the packs of more than 10 are not counted at every start" in error
    assert dry_run("--max_steps", "2")[0] == 0


def test_epochs_are_told_in_steps(dry_run):
    assert "# an epoch: 10 packs, 10 steps; 2 epochs are 20 steps" in dry_run("--num_train_epochs", "2")[1]


def test_nothing_is_written(folder, dry_run):
    before = sorted(str(path) for path in folder.rglob("*"))
    dry_run(f"checkpoint.save={folder / 'new'}")
    assert sorted(str(path) for path in folder.rglob("*")) == before


@pytest.fixture
def indexed(folder):
    model = InternVLConfig.from_folder(folder / "hf")
    config = config_for(folder / "data" / "meta.json", max_dynamic_patch=12, max_buffer_size=20)
    facts = ModelFacts(model.tile_size, model.tokens_per_tile)
    encoder = DocumentEncoder(config, Tokenizer.from_folder(folder / "hf"), facts, StridePolicy("default"), 1)
    options = BuildOptions(str(folder / "set"))
    build(read_data_list(config.meta_path), encoder, options, {"rope_pos_id_version": "v2pe_rnd"})
    return ("data.meta_path=", f"data.indexed_path={folder / 'set'}")


def test_an_indexed_set_is_looked_at_as_training_opens_it(folder, dry_run, indexed):
    status, comments, error = dry_run(*indexed, "v2pe.rope_pos_id_version=recorded")
    assert status == 0 and error == ""
    assert "set, 1 set, 23 samples an epoch; 23 samples read, with their files" in comments
    assert re.search(r"# an epoch: [0-9]+ packs, [0-9]+ steps; 1,000 steps are [0-9.]+ epochs", comments)
    status, _, error = dry_run(*indexed, "data.max_dynamic_patch=3")
    assert status == 2 and "was built with max_dynamic_patch 12 (now 3)" in error
    (folder / "data" / "image" / "1.png").unlink()
    status, _, error = dry_run(*indexed)
    assert status == 2 and "samples looked at cannot be used" in error and "1.png" in error
    (folder / "set" / "samples.bin").write_bytes(b"")
    assert dry_run(*indexed)[0] == 2


def test_a_run_that_cannot_go_on_is_refused_before_it_is_started(folder, dry_run):
    datasets = read_data_list(folder / "data" / "meta.json")
    for seed, status, words in ((42, 0, "goes on from"), (7, 2, "trained on other data")):
        state = {"position": 0, "open": [], "skipped": {}, "mixture": Mixture(datasets, seed).fingerprint()}
        step = folder / "saved" / "iter_0000003"
        step.mkdir(parents=True, exist_ok=True)
        (step / "training_state.json").write_text(json.dumps({"iteration": 3, "loader": state, "settings": {}}))
        found = dry_run(f"checkpoint.save={folder / 'saved'}")
        assert found[0] == status and words in found[1]
    found = dry_run(f"checkpoint.save={folder / 'saved'}", "adapter.kind=lora")
    assert found[0] == 2 and "was trained without adapters, and this run has some" in found[1]
    status, comments, error = dry_run("adapter.kind=lora", "adapter.targets=nothing")
    assert status == 2 and "adapter.targets" in error
    assert "which are refused" in comments and "the model:" not in comments, "it says what such a run would train"
    assert "checkpoint.resume is never" in dry_run(f"checkpoint.save={folder / 'saved'}", "checkpoint.resume=never")[2]
    (step / "training_state.json").write_text("{")
    assert "not valid JSON" in dry_run(f"checkpoint.save={folder / 'saved'}")[2]
