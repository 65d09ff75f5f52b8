"""When a validation is due, what it logs of losses that are no numbers, and which checkpoints it asks for."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import pytest

from megatron_v2pe.checkpoint.best import BestCheckpoints
from megatron_v2pe.checkpoint.folder import iteration_folder
from megatron_v2pe.data.validation_sets import ValidationPack, ValidationPlan
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.validation import work as work_module
from megatron_v2pe.train.validation.losses import ValidationLosses
from megatron_v2pe.train.validation.settings import ValidationConfig
from megatron_v2pe.train.validation.work import Validation


@pytest.fixture
def validation(tmp_path, monkeypatch):
    """A validation whose losses are given, in one process without a model."""

    def make(losses=(), **settings):
        given = iter(losses)

        def computed(*_):
            by_set = dict(zip("ab", next(given), strict=True))
            return ValidationLosses(by_set, sum(by_set.values()) / 2, 10, 2)

        monkeypatch.setattr(work_module, "validation_losses", computed)
        monkeypatch.setattr(work_module, "gather_parameters", lambda model: None)
        monkeypatch.setattr(work_module, "share_from_first_rank", lambda action: action())
        nothing = cast(Any, None)
        plan = ValidationPlan(("a", "b"), (ValidationPack(0),), 1)
        config = ValidationConfig(share=0.1, **settings)
        return Validation(config, nothing, nothing, plan, [*plan.packs], 1, nothing, nothing, tmp_path)

    return make


def test_when_it_is_due(validation):
    often = validation(interval=3)
    assert [step for step in range(8) if often.is_due(step, is_last=step == 7)] == [3, 6, 7]
    assert [step for step in range(8) if validation(interval=None).is_due(step, is_last=step == 7)] == [7]
    assert validation(at_start=True, interval=None).is_due(0, is_last=False)


def test_losses_that_are_no_numbers_are_told_and_left_out_of_the_row(validation, monkeypatch):
    """Kind of fault: a row of metrics with NaN is no JSON, and the run's log could not be read again."""
    told: list[str] = []
    monkeypatch.setattr(
        logging.getLogger(work_module.__name__), "error", lambda text, *words: told.append(text % words)
    )
    found = validation([(1.0, math.nan)], keep_best=1)
    values = found.run(5)
    assert set(values) == {"validation/loss/a", "validation/tokens", "validation/seconds"}
    assert not found.asks_to_save()
    assert told == ["validation after step 5: not finite, and not logged: validation/loss, validation/loss/b"]


def test_it_asks_for_the_checkpoints_that_are_best(validation, tmp_path):
    losses = [(4.0, 4.0), (3.0, 3.0), (3.5, 3.5), (5.0, 5.0), (2.0, 2.0)]
    found, asked = validation(losses, keep_best=2), []
    for step in (10, 20, 30, 40, 50):
        values = found.run(step)
        assert values["validation/loss"] == values["validation/loss/a"]
        if found.asks_to_save():
            asked.append(step)
            iteration_folder(tmp_path, step).mkdir()
            found.saved(step)
    assert asked == [10, 20, 30, 50] and not found.asks_to_save()
    assert BestCheckpoints.read(tmp_path).best([10, 20, 30, 50]) == [50, 20]


def test_another_value_to_compare_by_begins_anew(validation, tmp_path):
    validation([(1.0, 9.0)], keep_best=1).run(10)
    iteration_folder(tmp_path, 10).mkdir()
    found = validation([(9.0, 2.0)], keep_best=1, best_by="validation/loss/b")
    found.run(20)
    assert found.asks_to_save() and BestCheckpoints.read(tmp_path).values == {"20": 2.0}


def test_a_run_goes_on_with_the_samples_it_has_held_out(validation):
    found = validation()
    found.load_state_dict(found.state_dict())
    for other in ({"share": 0.1, "seed": 7}, {"share": 0.0, "seed": 1234}, {}):
        with pytest.raises(ConfigError, match="have been trained"):
            found.load_state_dict(other)
