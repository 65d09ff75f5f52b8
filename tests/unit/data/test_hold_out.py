"""A share of every data set is held out: so many samples, always the same ones, and none of them ever trains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.data_cases import POLICY, every_kind
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.hold_out import HoldOut, smallest_draws, training_sets
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.loader import build_loader
from megatron_v2pe.data.validation_sets import open_validation_sets
from megatron_v2pe.workshop.synthetic.small_data import FACTS

HELD = HoldOut(0.2, seed=3)


def lines_held(dataset, hold_out=HELD):
    return dataset.line_numbers[hold_out.held(dataset.name, dataset.line_numbers)].tolist()


@pytest.mark.parametrize(("share", "samples", "count"), [(0.2, 30, 6), (0.01, 1000, 10), (1e-9, 5, 1), (0.9, 2, 1)])
def test_the_share_is_exact(share, samples, count):
    held = HoldOut(share, 1).held("any", np.arange(1, samples + 1))
    assert held.sum() == count
    assert HoldOut(share, 1).held("any", np.arange(1)).sum() == 0, "of one sample none is held out"


def test_every_line_is_as_likely_and_seeds_and_names_choose_others():
    lines, often = np.arange(1, 201), np.zeros(200)
    for seed in range(400):
        often[smallest_draws(seed, "a", lines, 20, "held out")] += 1
    assert often.sum() == 8000 and 20 < often.min() and often.max() < 64  # mean 40, deviation 6: measured 24 to 57
    one, other = (set(smallest_draws(0, name, lines, 20, "held out").tolist()) for name in "ab")
    assert len(one & other) < 10


def test_lines_that_are_added_move_few_others():
    """A line's draw is its own: of a longer file those held out are the same but for the last few."""
    before, after = (set(smallest_draws(5, "a", np.arange(n), n // 10, "held out").tolist()) for n in (1000, 1100))
    assert len(before & after) >= 90


def test_other_data_sets_and_their_order_change_nothing(tmp_path, tokenizer):
    case = every_kind(tmp_path / "data", tokenizer)
    whole = json.loads(case.meta.read_text())
    before = {dataset.name: lines_held(dataset) for dataset in read_data_list(case.meta)}
    assert len(before["all"]) == 6 and len(before["more"]) == 1
    case.meta.write_text(json.dumps({"new": whole["all"], "more": whole["more"], "all": whole["all"]}))
    after = {dataset.name: lines_held(dataset) for dataset in read_data_list(case.meta)}
    assert {name: after[name] for name in before} == before and after["new"] != before["all"]


def test_list_and_indexed_set_hold_out_the_same_lines(tmp_path, tokenizer):
    case = every_kind(tmp_path / "data", tokenizer)
    samples = case.build(tmp_path / "set")
    listed = {dataset.name: lines_held(dataset) for dataset in read_data_list(case.meta)}
    for entry, held in HELD.held_samples(samples):
        assert samples.lines[entry.first : entry.first + entry.samples][held].tolist() == listed[entry.name]


@pytest.fixture(params=["list", "indexed"])
def data(request, tmp_path, tokenizer):
    """A way to hold the same data; `more` is seen two and a half times an epoch."""
    case = every_kind(tmp_path / "data", tokenizer)
    changes = {}
    if request.param == "indexed":
        case.build(tmp_path / "set")
        changes = {"meta_path": "", "indexed_path": str(tmp_path / "set"), "packing_window": 8}
    config = type(case.encoder.config)(**{**case.encoder.config.__dict__, **changes})
    return config, type(case.encoder)(config, tokenizer, FACTS, POLICY, 5)


def seen(data, tokenizer, hold_out, epochs=2.0):
    """Return the lines that training sees in two epochs, stopped and gone on with in another layout in between."""
    config, _ = data
    found, state = set[tuple[str, int]](), None
    for size, steps in ((1, 9), (2, 40)):
        loaders = [
            build_loader(
                *(config, tokenizer, FACTS, POLICY),
                seed=5,
                dp_rank=rank,
                dp_size=size,
                state=state,
                epochs=epochs,
                hold_out=hold_out,
            )
            for rank in range(size)
        ]
        for loader in loaders:
            batches = iter(loader)
            for _ in range(steps):
                found |= {(source.dataset, source.line) for source in next(batches).sources}
        state = loaders[0].state_dict()
    return found


def test_what_is_held_out_never_trains_and_all_the_rest_does(data, tokenizer):
    config, encoder = data
    sets = open_validation_sets(config, encoder, HELD, None, seed=3)
    held = {(one.name, one.source(number).line) for one in sets for number in range(len(one))}
    everything = seen(data, tokenizer, None)
    assert held < everything, "a planted break: training that leaves the hold-out away sees them"
    assert len(held) == 7 and seen(data, tokenizer, HELD) == everything - held


def test_validation_takes_at_most_so_many_and_always_the_same(data):
    config, encoder = data
    whole, some, again = (
        [(one.name, one.source(number).line) for one in open_validation_sets(config, encoder, HELD, most, 3)
         for number in range(len(one))]
        for most in (None, 4, 4)
    )  # fmt: skip
    assert len(some) == 5 and some == again and set(some) < set(whole)


def test_samples_of_an_indexed_set_keep_their_numbers(tmp_path, tokenizer):
    """Draws of training are keyed by the number in the epoch, and packs name samples of the whole set."""
    case = every_kind(tmp_path / "data", tokenizer)
    samples = case.build(tmp_path / "set")
    plan = IndexedPlan(samples, case.encoder.config, 5, SkipLog(0), hold_out=HELD)
    packed = [number for pack in plan.epoch(0) for number in pack.samples]
    counts, trained = HELD.training_samples(samples)
    assert sorted(set(packed)) == trained.tolist() and counts == {"all": 24, "more": 3}
    assert len(packed) == plan.mixture.epoch_length == 24 + 7  # three of `more`, two and a half times


def test_a_part_of_a_data_set_reads_its_own_lines(meta):
    (dataset,) = read_data_list(meta)
    chosen = np.arange(len(dataset)) % 5 == 2
    part = dataset.part(chosen)
    assert isinstance(part, Dataset) and len(part) == chosen.sum() and part.checksum == dataset.checksum
    for place, number in enumerate(np.flatnonzero(chosen).tolist()):
        assert part.id_of(place) == dataset.id_of(number)
        assert part.read(place) == dataset.read(number)
    assert sum(map(len, training_sets(str(meta), HELD))) == 18


def test_an_opened_set_says_its_lines(tmp_path, tokenizer):
    case = every_kind(tmp_path / "data", tokenizer)
    samples = case.build(tmp_path / "set")
    assert isinstance(samples, IndexedSamples)
    assert samples.lines.tolist() == [samples.source(number).line for number in range(len(samples))]
    supervised = samples[3].text.supervised
    assert samples.supervised[3] == (supervised[:, 1] - supervised[:, 0]).sum()
