"""The command line: three spellings of a setting, their order, and errors a person can act on."""

from __future__ import annotations

import pytest
import yaml

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli

RECIPE = "internvl2_2b_v2pe_32k"


def parse(*words):
    return cli.parse(words, RECIPES)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "words",
    [
        ("--optimizer.lr", "1e-5"),
        ("--optimizer.lr=1e-5",),
        ("optimizer.lr=1e-5",),
        ("--learning_rate", "1e-5"),
        ("--learning-rate=1e-5",),
    ],
)
def test_three_spellings_of_one_setting(words):
    config = parse("--recipe", RECIPE, *words)
    assert config.optimizer.lr == 1e-5
    assert config.train.train_steps == 20000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--parallel.sequence-parallel",), True),
        (("--parallel.sequence-parallel", "True"), True),
        (("--parallel.sequence_parallel=false",), False),
        (("--parallel.no-sequence-parallel",), False),
        (("parallel.sequence-parallel=true",), True),
    ],
)
def test_switches(words, expected):
    assert parse("--recipe", RECIPE, *words).parallel.sequence_parallel is expected


def test_values_that_look_like_something_else():
    config = parse("--model.vision-select-layer", "-2", "--v2pe.strides", "1", "1/2", "optimizer.lr=1", "--seed", "7")
    assert config.model.vision_select_layer == -2
    assert config.v2pe.strides == ("1", "1/2")
    assert (config.optimizer.lr, config.train.seed) == (1.0, 7)
    assert parse("--v2pe.strides", "1,2,4").v2pe.strides == ("1", "2", "4")
    assert parse("--recipe", RECIPE, "--checkpoint.save", "None").checkpoint.save is None
    assert parse("--recipe", RECIPE, "checkpoint.save=none").checkpoint.save is None


def test_later_layers_win(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {seed: 1, train_steps: 10}\noptimizer: {lr: 1.0}\n")
    command = ("--recipe", RECIPE, "--config", str(path))
    config = parse(*command)
    assert (config.train.seed, config.train.train_steps, config.optimizer.lr) == (1, 10, 1.0)
    assert config.v2pe.rope_pos_id_version == "v2pe_rnd"
    assert parse(*command, "--seed", "2").train.seed == 2
    assert parse(*command, "--seed", "2", "train.seed=3").train.seed == 3
    assert parse("--train.seed", "4", *command, "--seed", "2", "train.seed=3").train.seed == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "internvl2_2b_v2pe_32"), "did you mean internvl2_2b_v2pe_32k"),
        (("--max_seq_lenght", "1"), r"did you mean --max_seq_length\?"),
        (("--parallel.tensor-parallel-size", "2"), "did you mean --parallel.tensor-model-parallel-size"),
        (("--tensor-model-parallel-size", "2"), "did you mean --parallel.tensor-model-parallel-size"),
        (("--optimizer.learning-rate", "2"), r"did you mean --optimizer.lr\?"),
        (("--dryrun",), r"did you mean --dry-run\?"),
        (("opt.lr=3",), r"did you mean optimizer.lr\?"),
        (("--zzz",), "see --help and --print-flags"),
        (("--recipe",), "--recipe needs a value"),
        (("--optimizer.lr", "--train.seed", "1"), "--optimizer.lr needs a value"),
        (("--model.no-tokenizer-path",), "model.tokenizer_path is not a switch"),
        (("something",), "'something' is neither a flag"),
        (("train.seed=x",), "train.seed is 'x', expected a whole number"),
    ],
)
def test_misspelt_words_get_the_nearest_known_one(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer.lr fast", "--optimizer.lr: optimizer.lr is 'fast', expected a number"),
        ("--train.precision bf17", "--train.precision: train.precision is 'bf17', expected one of bf16, fp32"),
        ("--train.seed=1.5", "--train.seed: train.seed is '1.5', expected a whole number"),
    ],
)
def test_a_flag_with_a_value_of_the_wrong_type_is_refused_in_one_line_as_all_else_is(words, message, capsys):
    assert cli.main(["--recipe", RECIPE, "--dry-run", *words.split()], RECIPES) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"error: {message}\n"


def test_help_lists_settings_and_recipes(capsys):
    with pytest.raises(SystemExit) as raised:
        parse("--help")
    text = capsys.readouterr().out
    assert raised.value.code == 0
    assert "--parallel.tensor-model-parallel-size" in text
    assert all(name in text for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run_prints_the_resolved_settings(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what recipes name is relative to it
    assert cli.main(["--recipe", name, "--dry-run", "--train.seed", "5"], RECIPES) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["train"]["seed"] == 5
    printed["train"]["seed"] = RECIPES[name]().train.seed
    assert RECIPES[name]().updated(printed, "printed") == RECIPES[name]()


def test_an_invalid_run_is_refused_with_status_two(capsys):
    assert cli.main(["--recipe", RECIPE, "--dry-run", "--rope_pos_id_version", "v2pe_fix"], RECIPES) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: v2pe.rope_pos_id_stride is missing")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_under_a_launcher_one_rank_speaks_and_the_world_is_checked(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.main(["--recipe", RECIPE, "--dry-run", "--chunk_num", "2", "--attn_type", "ring"], RECIPES) == 2
    error = capsys.readouterr().err
    assert error.count("world size 3 is not a multiple") == lines
    assert cli.main(["--recipe", RECIPE, "--dry-run", "train.global_batch_size=3"], RECIPES) == 0
    assert bool(capsys.readouterr().out) == bool(lines)
