"""The best checkpoints of a run are known by a small file, survive rotation, and have a name."""

from __future__ import annotations

import json
import math

import pytest

from megatron_v2pe.checkpoint.best import BEST_FILE, BestCheckpoints
from megatron_v2pe.checkpoint.folder import DESCRIPTION, iteration_folder, iterations, remove_old
from megatron_v2pe.checkpoint.resolve import best_of, find_checkpoint
from megatron_v2pe.errors import CheckpointError, ConfigError


@pytest.fixture
def run(tmp_path):
    """Make checkpoints of steps as a run does, each with its value before it is there."""

    def make(values, keep=2, latest=1, greater=False):
        for step, value in values.items():
            there = iterations(tmp_path)
            known = BestCheckpoints.read(tmp_path)
            known = BestCheckpoints("validation/loss", keep, greater, known.values).with_value(step, value, there)
            known.write(tmp_path)
            iteration_folder(tmp_path, step).mkdir()
            (iteration_folder(tmp_path, step) / DESCRIPTION).write_text("{}")
            remove_old(tmp_path, step, latest)
        return tmp_path

    return make


def test_the_best_survive_rotation(run):
    root = run({10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5, 50: 4.0, 60: 5.0})
    assert iterations(root) == [20, 30, 60] and best_of(root) == iteration_folder(root, 20)
    assert set(BestCheckpoints.read(root).values) <= {"20", "30", "50", "60"}


def test_without_best_the_newest_stay_as_ever(run):
    assert iterations(run({10: 1.0, 20: 2.0, 30: 3.0}, keep=0)) == [30]


def test_greater_may_be_better_and_of_equals_the_earlier_is(run):
    root = run({10: 0.5, 20: 0.9, 30: 0.9, 40: 0.1}, keep=1, greater=True)
    assert iterations(root) == [20, 40]


def test_a_value_that_is_no_number_is_never_best(run):
    root = run({10: math.nan, 20: math.inf, 30: 7.0, 40: 8.0}, keep=3)
    assert iterations(root) == [30, 40]


def test_a_value_without_its_checkpoint_counts_for_nothing(tmp_path, run):
    """A run killed between a validation and its checkpoint: the value stands in the file, the folder is not there."""
    root = run({10: 3.0, 20: 2.0}, keep=1)
    known = BestCheckpoints.read(root).with_value(30, 0.1, iterations(root))
    known.write(root)
    assert best_of(root) == iteration_folder(root, 20) and known.best(iterations(root)) == [20]
    again = BestCheckpoints.read(root).with_value(25, 9.0, iterations(root))
    assert set(again.values) == {"20", "25"}, "what a run that was set back had found later is forgotten"


def test_a_run_and_best_name_the_best_checkpoint(run):
    root = run({10: 1.0, 20: 2.0})
    assert find_checkpoint(root / "best", "--checkpoint").folder == iteration_folder(root, 10)
    (root / BEST_FILE).unlink()
    with pytest.raises(ConfigError, match="best: no such folder"):
        find_checkpoint(root / "best", "--checkpoint")


@pytest.mark.parametrize("damage", ['{"by": 3}', "[]", '{"values": {"a": 1.0}}', '{"keep": -1}', "{"])
def test_a_damaged_file_is_named(run, damage):
    root = run({10: 1.0})
    (root / BEST_FILE).write_text(damage)
    with pytest.raises(CheckpointError, match=BEST_FILE):
        best_of(root)
    whole = json.loads(json.dumps({"by": "x", "keep": 1, "greater_is_better": False, "values": {"10": 2.0}}))
    (root / BEST_FILE).write_text(json.dumps(whole))
    assert best_of(root) == iteration_folder(root, 10)
