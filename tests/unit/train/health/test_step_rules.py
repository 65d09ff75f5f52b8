"""The rules by which a run judges its steps: which loss is a spike, how many steps may be skipped, how it says so."""

from __future__ import annotations

import json
import random

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.health.checks import checks_between_steps
from megatron_v2pe.train.health.loss_spikes import SpikeRule
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.train.health.skipped_steps import SkippedSteps, error_of, reason
from megatron_v2pe.train.step import StepResult


def noisy(count, seed=0):
    generator = random.Random(seed)
    return [2.0 - 0.002 * step + generator.gauss(0, 0.05) for step in range(count)]


def test_noise_is_no_spike_and_a_jump_is_one():
    rule = SpikeRule(8.0, 100)
    assert [rule.judge(loss) for loss in noisy(500)] == [None] * 500
    limit, begins = rule.judge(2.5)
    assert begins and 1.0 < limit < 2.5
    assert rule.judge(2.6)[1] is False, "the steps of one spike are one spike"
    assert rule.judge(noisy(501)[-1]) is None
    assert rule.judge(2.6)[1] is True


def test_a_few_spikes_do_not_hide_the_next():
    rule = SpikeRule(8.0, 40)
    for number, loss in enumerate(noisy(80)):
        rule.judge(50.0 if number % 10 == 9 else loss)
    assert rule.judge(5.0) is not None
    mean_and_deviation = 6.8 + 8 * 14.4  # of the same window: a rule by them would see nothing
    assert 5.0 < mean_and_deviation


def test_nothing_is_judged_before_enough_is_known_nor_without_a_factor():
    rule = SpikeRule(8.0, 100)
    assert all(rule.judge(loss) is None for loss in [1.0] * 19 + [])
    assert SpikeRule(8.0, 100).judge(1e9) is None
    off = SpikeRule(None, 10)
    assert all(off.judge(loss) is None for loss in [1.0] * 50 + [1e9])


def test_losses_that_hardly_move_are_no_spikes_for_their_rounding():
    rule = SpikeRule(8.0, 100)
    assert [rule.judge(1.0) for _ in range(30)] == [None] * 30
    assert rule.judge(1.0 + 1e-6) is None and rule.judge(1.01) is not None


def test_a_rule_goes_on_where_it_was_saved():
    whole, first = SpikeRule(8.0, 30), SpikeRule(8.0, 30)
    losses = [*noisy(60), 9.0, 9.0, *noisy(20, seed=1), 9.0]
    expected = [whole.judge(loss) for loss in losses]
    found = [first.judge(loss) for loss in losses[:61]]
    second = SpikeRule(8.0, 30)
    second.restore(**json.loads(json.dumps(first.state())))
    assert found + [second.judge(loss) for loss in losses[61:]] == expected
    assert [one for one in expected if one] and expected[61][1] is False


def test_bounds_count_steps_in_a_row_and_in_all():
    steps = SkippedSteps(HealthConfig(max_skipped_steps=4, max_skipped_in_a_row=2))
    assert "1 in a row of 2 allowed, 1 in all of 4" in steps.skip(7)
    steps.skip(8)
    assert steps.in_a_row() == 2 and steps.beyond() is None
    steps.skip(10)
    assert steps.in_a_row() == 1
    steps.skip(12)
    assert steps.beyond() is None
    steps.skip(14)
    assert steps.beyond() == "health.max_skipped_steps allows 4"
    row = SkippedSteps(HealthConfig(max_skipped_in_a_row=0))
    row.skip(3)
    assert row.beyond() == "health.max_skipped_in_a_row allows 0"


def test_the_error_names_what_is_not_finite_and_what_to_do():
    loss = StepResult(float("nan"), (), 1.0, 0, ())
    norm = StepResult(1.0, (), float("inf"), 0, ())
    assert not loss.is_finite and not norm.is_finite and StepResult(1.0, (), 1.0, 0, ()).is_finite
    assert reason(norm) == "the norm of the gradients is inf"
    text = str(error_of(1, reason(loss), ["a", "b", "c", "d"], None, [1]))
    assert text.startswith("step 1: the loss is nan; weights are not finite: a, b, c and 1 more; nothing was saved")
    text = str(error_of(9, reason(loss), [], "health.max_skipped_steps allows 2", [4, 8, 9]))
    assert "allows 2; skipped before: 4, 8; the last checkpoint was written before that" in text
    assert "skipped_steps.jsonl" in text


@pytest.mark.parametrize(("text", "steps"), [("", None), ("4", (4, 4)), ("3:5", (3, 5))])
def test_steps_to_be_profiled(text, steps):
    settings = HealthConfig(profile_steps=text)
    settings.validate()
    assert settings.profiled() == steps


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"profile_steps": "5:3"}, "health.profile_steps is '5:3'"),
        ({"profile_steps": "0"}, "expected a step from 1 on"),
        ({"profile_steps": "a"}, "health.profile_steps"),
        ({"profile_ranks": (-1,)}, "health.profile_ranks names rank -1"),
        ({"window": 1}, "health.window"),
        ({"spike_factor": 0.5}, "health.spike_factor"),
        ({"max_skipped_steps": -1}, "health.max_skipped_steps"),
    ],
)
def test_wrong_settings_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        HealthConfig(**values).validate()


@pytest.mark.parametrize("interval", [None, 3])
def test_checks_are_due_after_their_steps_and_never_before_the_first(interval):
    settings = HealthConfig(interval=interval, divergence_interval=interval)
    for check in checks_between_steps(settings, None, None, dict, "the start"):
        due = [step for step in range(8) if check.is_due(step, is_last=step == 7)]
        looks_back = check.name in ("weight norms", "divergence")  # the others watch a step while it runs
        assert due == ([3, 6] if interval is not None and looks_back else []), check.name
