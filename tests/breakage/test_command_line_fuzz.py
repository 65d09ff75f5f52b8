"""Command lines of `tools/train.py` made at random: each gives settings of the right types, or one error, or help."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import time

import pytest

from helpers.setting_oracle import ODD_VALUES, SETTINGS, problem, verdict
from megatron_v2pe.base import config_tree
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli, published_flags

SEED = int(os.environ.get("BREAKAGE_SEED", "14"))
TEXTS = [str(value) for value in ODD_VALUES if value not in (10**399,)]
TEXTS += ["=", "a=b", "a.b=c", "--", "-h", "--help=1", "\ud800", "'", '"', "\\", "%s", "{0}", "x.json", "\x00.json"]
PATHS, PUBLISHED = list(SETTINGS), list(published_flags.FLAGS)


def words_of(draw):
    """Return the words of one flag, assignment, or something that is neither."""
    text, path, flag = draw.choice(TEXTS), draw.choice(PATHS), draw.choice(PUBLISHED)
    section, _, last = path.partition(".")
    spelt = "".join(draw.choice("abc-._= \x00é") if draw.random() < 0.1 else c for c in path)
    return draw.choice(
        (
            [f"--{path.replace('_', '-')}", text],
            [f"--{path}={text}"],
            [f"{path}={text}"],
            [f"--{flag}", text],
            [f"--{flag}={text}"],
            [f"--{flag}"],
            [f"--{path}"],
            [f"--{spelt}", text],
            [f"{spelt}={text}"],
            [f"--{section}.no-{last.replace('_', '-')}"],
            ["--recipe", draw.choice((*RECIPES, text))],
            ["--config", draw.choice((text, "/dev/null", "/dev/zero", "/"))],
            ["--dry-run", text],
            [text],
            [f"{text}={text}"],
            ["--v2pe.strides", *draw.choices(TEXTS, k=draw.randrange(4))],
        )
    )


def run(argv):
    """Parse and check a command line; return `settings`, `error`, `usage` or `help`, and what is wrong with it."""
    started = time.process_time()
    outcome, faults = "settings", []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            config = cli.parse(argv, RECIPES)
            config.validate()
            config.to_yaml().encode()
            values = {path: getattr(getattr(config, path.split(".")[0]), path.split(".")[1]) for path in SETTINGS}
            faults = [f"{path}: {fault}" for path, row in SETTINGS.items() if (fault := problem(row, values[path]))]
        except ConfigError as error:
            outcome = "error"
            faults = [f"message {str(error)[:100]!r}"] if "\x1b" in str(error) or len(str(error)) > 900 else []
        except SystemExit as stop:
            outcome = "help" if stop.code == 0 else "usage"
            faults = [] if stop.code in (0, 2) else [f"exit status {stop.code}"]
        except BaseException as error:
            outcome, faults = "traceback", [f"{type(error).__name__}: {error}"]
    return outcome, faults + (["slow"] if time.process_time() - started > 5 else [])


def faults_of(count, seed=SEED):
    """Yield what is wrong with some of `count` command lines; at last, how many ended how."""
    outcomes = dict.fromkeys(("settings", "error", "usage", "help", "traceback"), 0)
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        argv = ["--recipe", draw.choice(list(RECIPES))] if draw.random() < 0.6 else []
        argv += [word for _ in range(draw.randint(1, 4)) for word in words_of(draw)]
        outcome, faults = run(argv)
        outcomes[outcome] += 1
        yield from (f"{[word[:60] for word in argv]}: {fault}" for fault in faults)
    assert outcomes["settings"] > count / 50 and outcomes["error"] > count / 2, outcomes


def test_command_lines_made_at_random():
    assert list(faults_of(2000)) == []


@pytest.mark.filterwarnings("ignore")
def test_a_value_that_is_taken_as_it_comes_is_caught(monkeypatch):
    """Planted break: settings are set without a look at their types."""
    monkeypatch.setattr(config_tree, "coerce", lambda value, kind, where: value)
    found = list(faults_of(300))
    assert any("a str for" in line for line in found)


def test_single_settings_are_taken_or_refused_as_they_should():
    draw, count = random.Random(SEED), 0
    for _ in range(1000):
        path, text = draw.choice(PATHS), draw.choice(TEXTS)
        expected = verdict(SETTINGS[path], text)
        outcome, faults = run(["--recipe", "internvl2_2b_v2pe_32k", f"{path}={text}"])
        assert not faults, (path, text[:60], faults)
        if expected is False:
            assert outcome == "error", (path, text[:60])
            count += 1
    assert count > 400


def test_flags_in_a_file_are_typed(tmp_path):
    """A JSON file of published flags: what has the wrong type for its setting is refused with its name."""
    draw, path, refused = random.Random(SEED), tmp_path / "args.json", 0
    values = [value for value in ODD_VALUES if not isinstance(value, str) or value.isprintable()]
    for _ in range(500):
        name, value = draw.choice(PUBLISHED), draw.choice(values)
        path.write_text(json.dumps({name: value}), encoding="utf-8")
        outcome, faults = run([str(path)])
        assert outcome in ("settings", "error") and not faults, (name, value, faults)
        flag = published_flags.FLAGS[name]
        single = flag.kind == "mapped" and flag.convert is None and flag.key in SETTINGS
        if isinstance(value, (dict, list)) and name != "report_to":
            assert outcome == "error", (name, value)
        if single and verdict(SETTINGS[flag.key], value) is False:
            assert outcome == "error", (name, value)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"output_dir": 5}', "args.json: output_dir: found 5, expected text"),
        ('{"learning_rate": [1]}', "args.json: learning_rate: found a list"),
        ('{"seed": true}', "train.seed is 'True', expected a whole number"),
        ('{"seed": 1, "seed": 2}', "'seed' stands twice"),
        ('{"learning_rate": NaN}', "NaN is no number"),
        ("[1]", "holds a list, expected an object"),
        ("[" * 100_000, "nested deeper than 64"),
        ('{"seed": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"\x1b[31m": 1}'.replace("\x1b", "\\u001b"), r"unknown flag --\\x1b\[31m"),
    ],
)
def test_a_file_of_flags_that_cannot_be_meant(tmp_path, content, message):
    path = tmp_path / "args.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        cli.parse([str(path)], RECIPES)


def test_published_scripts_name_reports_as_a_list(tmp_path):
    path = tmp_path / "args.json"
    path.write_text('{"report_to": ["tensorboard"], "save_steps": 7, "freeze_llm": true, "rope_pos_id_stride": 64}')
    config = cli.parse([str(path)], RECIPES)
    assert config.logging.tensorboard and not config.logging.wandb and config.model.freeze_llm
    assert (config.checkpoint.save_interval, config.v2pe.rope_pos_id_stride) == (7, "64")
