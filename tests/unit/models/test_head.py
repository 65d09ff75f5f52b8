"""The head's supervised rows: how many lie in each slice, and that slices give what the whole sequence gives."""

from __future__ import annotations

import pytest
import torch

from helpers import head_runs
from megatron_v2pe.models.head import Targets, supervised_states

WIDTH = 3
N = -100
LABELS = {
    "ragged": [N, 5, N, N, N, N, 6, 7, N, 8, N, 9],
    "none on the first rank": [N, N, N, N, N, N, N, 4, 4, N, 2, 3],
    "none on the last rank": [1, N, N, 2, 3, N, N, N, N, N, N, N],
    "all": list(range(12)),
}


def whole(labels):
    """What one rank chooses from the whole sequence, and the gradient of that."""
    states, gradients = head_runs.random_states(len(labels), WIDTH)
    rows = (labels != N).nonzero().squeeze(1)
    return states.index_select(0, rows), torch.zeros_like(states).index_copy_(0, rows, gradients[rows])


def test_targets_written_out():
    labels = torch.tensor([N, 5, 6, N, N, N, N, 7])
    weights = torch.tensor([0.0, 0.5, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    targets = Targets.from_labels(labels, weights, slices=2)
    assert targets.rows.tolist() == [1, 2, 7] and targets.tokens.tolist() == [5, 6, 7]
    assert targets.weights.tolist() == [0.5, 1.0, 2.0]
    assert targets.slice_counts == (2, 1)
    assert Targets.from_labels(labels, weights, slices=4).slice_counts == (1, 1, 0, 1)
    assert Targets.from_labels(labels, weights).slice_counts == (3,)


def test_no_targets():
    targets = Targets.from_labels(torch.full((8,), N), torch.zeros(8), slices=2)
    assert targets.rows.numel() == 0 and targets.slice_counts == (0, 0)


def test_another_ignored_label():
    targets = Targets.from_labels(torch.tensor([-1, 3, N, -1]), torch.ones(4), ignore_index=-1, slices=2)
    assert targets.tokens.tolist() == [3, N] and targets.slice_counts == (1, 1)


@pytest.mark.parametrize("name", LABELS)
def test_slices_choose_what_the_whole_sequence_chooses(pools, name):
    """Rows are copied, not computed: equal to the last bit."""
    labels = torch.tensor(LABELS[name])
    expected, gradient = whole(labels)
    results = pools[2].run(head_runs.chosen_states, labels=labels, width=WIDTH)
    for chosen, _ in results:
        assert torch.equal(chosen, expected)
    assert torch.equal(torch.cat([mine for _, mine in results]), gradient)


def test_one_slice_chooses_by_itself():
    labels = torch.tensor(LABELS["ragged"])
    states, _ = head_runs.random_states(len(labels), WIDTH)
    targets = Targets.from_labels(labels, torch.ones(len(labels)))
    assert torch.equal(supervised_states(states, targets, None), whole(labels)[0])


def test_a_planted_sum_of_gradients_is_seen(pools):
    labels = torch.tensor(LABELS["ragged"])
    results = pools[2].run(head_runs.chosen_states, labels=labels, width=WIDTH, summed_gradients=True)
    expected, gradient = whole(labels)
    assert all(torch.equal(chosen, expected) for chosen, _ in results)
    assert torch.equal(torch.cat([mine for _, mine in results]), 2 * gradient)
