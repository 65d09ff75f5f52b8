"""What is done between steps: when its turn comes, once for each step, with a state that goes into a checkpoint."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.train.after_step import AfterStep, AfterSteps


class EverySecond(AfterStep):
    name = "counting"

    def __init__(self):
        self.runs, self.places = 0, []

    def is_due(self, iteration, is_last):
        return iteration % 2 == 0 or is_last

    def run(self, iteration):
        self.runs += 1
        return {"counting/runs": self.runs}

    def asks_to_save(self):
        return self.runs == 2

    def saved(self, iteration):
        self.places.append(iteration)

    def state_dict(self):
        return {"runs": self.runs}

    def load_state_dict(self, state):
        self.runs = state["runs"]


def test_work_is_done_when_due_and_once_for_a_step():
    after = AfterSteps([EverySecond()])
    found = [(after.run(step, step == 5), after.asks_to_save(step)) for step in range(1, 6)]
    assert found == [({}, False), ({"counting/runs": 1}, False), ({}, False), ({"counting/runs": 2}, True)] + [
        ({"counting/runs": 3}, False)
    ]
    assert after.run(5, True) == {}, "a run that goes on after step 5 has done it"


def test_a_state_is_taken_over_and_what_was_missed_is_done():
    before = AfterSteps([EverySecond()])
    before.run(2, False)
    work = EverySecond()
    after = AfterSteps([work])
    after.load_state_dict(before.state_dict(), "training_state.json")
    assert after.run(2, False) == {} and after.run(4, False) == {"counting/runs": 2}
    after.saved(4)
    assert work.places == [4]
    for broken in ({"counting": 3}, {"counting": {"done": -1, "state": {}}}, {"counting": {"done": 1, "state": []}}):
        with pytest.raises(CheckpointError, match="training_state.json"):
            after.load_state_dict(broken, "training_state.json")
