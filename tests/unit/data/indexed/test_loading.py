"""Training on an indexed set: every sample exactly as often as it should be, through any stops, ranks and workers."""

from __future__ import annotations

import gc
import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.data_cases import POLICY, assert_same_batches
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.loader import build_loader
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.workshop.synthetic.small_data import FACTS

PACKS_PER_STEP = 4
EPOCH = Counter({"all": 30, "more": 10})
"""Samples of each data set in an epoch: 4 lines, 2.5 times, of the second."""


@pytest.fixture
def config(case, tmp_path):
    case.build(tmp_path / "set")
    return replace(case.encoder.config, indexed_path=str(tmp_path / "set"), packing_window=17)


@pytest.fixture
def open_loader(tokenizer, config):
    def run(rank=0, size=1, state=None, seed=5, policy=POLICY, **changes):
        state = None if state is None else json.loads(json.dumps(state))
        return build_loader(
            replace(config, **changes),
            tokenizer,
            FACTS,
            policy,
            seed=seed,
            dp_rank=rank,
            dp_size=size,
            packs_per_step=PACKS_PER_STEP,
            state=state,
        )

    return run


def plan_of(case, config, seed=5, state=None):
    return IndexedPlan(case.build(config.indexed_path), config, seed, SkipLog(0), state)


def test_a_pack_is_a_function_of_seed_epoch_and_number(case, config):
    plan = plan_of(case, config)
    for epoch in (0, 3):
        packs = list(plan.epoch(epoch))
        assert packs == list(plan_of(case, config).epoch(epoch)) != list(plan_of(case, config, seed=6).epoch(epoch))
        for number in (1, len(packs) - 1):
            assert list(plan.epoch(epoch, number)) == packs[number:]
        numbers = sorted(number for pack in packs for number in pack.numbers)
        assert numbers == list(range(40)), "every place of the epoch once"
    assert list(plan.epoch(0)) != list(plan.epoch(1))


def test_budgets_and_costs(case, config):
    samples = case.build(config.indexed_path)
    for pack in plan_of(case, config).epoch(0):
        lengths = samples.num_tokens[list(pack.samples)].astype(int)
        assert lengths.sum() <= 700 and samples.num_tiles[list(pack.samples)].sum() <= 20
        assert pack.cost == (lengths**2).sum()


@pytest.mark.parametrize("packs", [1, 4, 7])
def test_an_epochs_end_is_filled_with_packs_that_weigh_nothing(case, config, packs):
    plan = plan_of(case, config)
    total = len(list(plan.epoch(0)))
    steps = -(-total // packs)
    seen = [pack for _ in range(steps) for pack in plan.step(packs)]
    assert [pack for pack in seen if pack.samples] == list(plan.epoch(0))
    assert len(seen) == steps * packs and all(not pack.samples for pack in seen[total:])
    assert [pack for pack in plan.step(packs) if pack.samples] == list(plan.epoch(1))[:packs]


def test_empty_packs_are_batches_without_tokens(open_loader):
    loader = open_loader()
    batches = list(islice(loader, 40))
    empty = [batch for batch in batches if not batch.seqlens]
    assert empty and all(batch.input_ids.shape == (0,) and batch.tiles.shape == (0, 28, 28, 3) for batch in empty)


def _run(open_loader, stops, layouts):
    """Train to the end of two epochs, stopping after each of `stops` steps; return the packs' sources in order."""
    state, seen, layout = None, [], iter(layouts)
    for steps in [*stops, 1000]:
        size, workers = next(layout)
        loaders = [open_loader(rank, size, state, num_workers=workers) for rank in range(size)]
        streams = [iter(loader) for loader in loaders]
        for _ in range(steps):
            step = [[next(stream) for _ in range(PACKS_PER_STEP // size)] for stream in streams]
            state = loaders[0].state_dict()
            assert all(loader.state_dict() == state for loader in loaders)
            seen.append(Counter(str(batch.sources) for rank in step for batch in rank))
            if state["epoch"] == 2:
                return seen
    raise AssertionError


def test_exactly_once_whatever_happens(open_loader, config):
    undisturbed = _run(open_loader, [], [(1, 0)])
    counts = Counter(source for step in undisturbed for source, count in step.items() for _ in range(count))
    moments = random.Random(1)
    stops = [moments.randint(1, 2) for _ in range(5)]
    layouts = [(1, 0), (2, 0), (4, 0), (1, 2), (4, 0), (2, 2)]
    assert _run(open_loader, stops, layouts) == undisturbed, "the same packs in every step"
    samples = Counter()
    for sources, count in counts.items():
        for name in EPOCH:
            samples[name] += count * sources.count(f"dataset='{name}'")
    assert samples == Counter({name: 2 * count for name, count in EPOCH.items()})


def test_equal_batches_after_a_resume(open_loader):
    loader = open_loader()
    stream = iter(loader)
    before = [next(stream) for _ in range(PACKS_PER_STEP)]
    state = loader.state_dict()
    after = [next(stream) for _ in range(6)]
    assert before
    assert_same_batches(list(islice(open_loader(state=state, num_workers=2), 6)), after)


def test_strides_are_the_runs_choice(open_loader, tokenizer):
    one = next(iter(open_loader()))
    other = next(iter(open_loader(policy=replace(POLICY, version="default"))))
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
    assert not torch.equal(one.position_ticks.values, other.position_ticks.values)


def test_ranks_get_balanced_shares(case, config):
    plan = plan_of(case, config)
    packs = plan.step(8)
    for balanced in (True, False):
        shares = plan_of(case, replace(config, balance_attention=balanced)).deal(packs, 4)
        assert sorted(number for share in shares for number in share) == list(range(8))
        assert {len(share) for share in shares} == {2}
        loads = [sum(packs[number].cost for number in share) for share in shares]
        spread = max(loads) / (sum(loads) / 4)
        assert not balanced or spread < 1.2
        assert balanced or shares == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_padding_can_be_capped(case, config):
    samples = case.build(config.indexed_path)
    capped = replace(config, pack_padding_multiple=16, max_padding_share=0.03)
    for settings, limit in ((config, None), (capped, 21)):
        waste = []
        for pack in plan_of(case, settings).epoch(0):
            waste.append(sum(-int(samples.num_tokens[sample]) % 16 for sample in pack.samples))
            assert limit is None or len(pack.samples) == 1 or waste[-1] <= limit
        assert limit is not None or max(waste) > 21


def test_another_batch_size_after_a_resume(case, config):
    """The packs of an epoch are the same ones, in order, however many make a step."""
    packs = list(plan_of(case, config).epoch(0))
    state, seen = None, []
    for count in (3, 2, 5, 1, 4, 4, 4):
        plan = plan_of(case, config, state=state)
        if plan.state_dict()["epoch"] == 1:
            break
        seen += [pack for pack in plan.step(count) if pack.samples]
        state = json.loads(json.dumps(plan.state_dict()))
    assert seen == packs


def test_repeats_of_the_data_list_count(case, config):
    lists = json.loads(case.meta.read_text())
    assert len([n for pack in plan_of(case, config).epoch(0) for n in pack.numbers]) == 40
    lists["more"]["repeat_time"] = 5
    case.meta.write_text(json.dumps(lists))
    changed = IndexedPlan(IndexedSamples(config.indexed_path), config, 5, SkipLog(0))
    assert len([n for pack in changed.epoch(0) for n in pack.numbers]) == 50
    built = IndexedPlan(IndexedSamples(config.indexed_path), replace(config, meta_path=""), 5, SkipLog(0))
    assert len([n for pack in built.epoch(0) for n in pack.numbers]) == 40
    case.meta.write_text(json.dumps({"all": lists["all"]}))
    with pytest.raises(ConfigError, match="do not list the same data sets: more in one alone"):
        IndexedPlan(IndexedSamples(config.indexed_path), config, 5, SkipLog(0))


def test_rebuilt_with_other_images_is_another_set(case, config, tmp_path):
    state = plan_of(case, config).state_dict()
    Image.new("RGB", (200, 30)).save(tmp_path / "data" / "image" / "1.png")
    shutil.rmtree(config.indexed_path)
    with pytest.raises(ConfigError, match="other packs.*lengths"):
        plan_of(case, config, state=json.loads(json.dumps(state)))


def test_a_state_of_something_else_is_refused(open_loader, case):
    loader = open_loader()
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(ConfigError, match=r"other packs.*max_packed_tokens 700 \(now 800\)"):
        open_loader(state=state, max_packed_tokens=800)
    with pytest.raises(ConfigError, match=r"other packs.*mixture"):
        open_loader(state=state, seed=6)
    with pytest.raises(ConfigError, match="trained on an indexed data set; set data.indexed_path"):
        open_loader(state=state, indexed_path="", meta_path=str(case.meta))
    online = open_loader(indexed_path="", meta_path=str(case.meta))
    next(iter(online))
    with pytest.raises(ConfigError, match=r"trained on a data list; set data.meta_path"):
        open_loader(state=online.state_dict())


def test_changed_images_are_counted_and_left_out(open_loader, case, config, tmp_path):
    picture = tmp_path / "data" / "image" / "0.png"
    picture.write_bytes(picture.read_bytes() + b"!")
    with pytest.raises(DataError, match=r"(?s)0.png: \d+ bytes, \d+ when the data set was built.*allows 0"):
        list(islice(open_loader(), 12))
    loader = open_loader(max_skipped_samples=100)
    packs = len(list(plan_of(case, config).epoch(0)))
    batches = list(islice(loader, -(-packs // PACKS_PER_STEP) * PACKS_PER_STEP))
    kept = sum(len(batch.seqlens) for batch in batches)
    assert kept + sum(loader.state_dict()["skipped"].values()) == 40, "an epoch's samples, seen or counted"
    (cause,) = loader.state_dict()["skipped"]
    assert "the image changed" in cause or "when the data set was built" in cause


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_met_while_training_stops_the_run(open_loader, config, workers):
    """Found in planning or in a reader process: one DataError that names the file, no traceback inside of it."""
    for name in ("tokens.bin", "samples.bin"):
        path = Path(config.indexed_path) / name
        content = path.read_bytes()
        path.write_bytes(content[:8] + bytes([content[8] ^ 1]) + content[9:])
        message = ""
        try:
            list(islice(open_loader(num_workers=workers), 40))
        except DataError as error:
            message = str(error)
        gc.collect()  # ends the readers here, and not wherever Python would come to it
        assert f"{name}: bytes 0 to" in message and "are not those that were written" in message
        assert "Traceback" not in message
        path.write_bytes(content)
