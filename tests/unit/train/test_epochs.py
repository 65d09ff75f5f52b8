"""Epochs asked for are what is trained: every sample as often, steps known before the first, also after a resume."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import pytest

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.indexed.build import BuildOptions, build
from megatron_v2pe.data.loader import build_loader
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.train import epochs
from megatron_v2pe.train.epochs import packs_of_epoch, steps_left
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import config_for, write_dataset, write_tokenizer

FACTS, SEED = ModelFacts(56, 4), 3
POLICY = StridePolicy("default")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["list", "set"])
def data(request, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    config = config_for(write_dataset(folder / "data"))
    if request.param == "list":
        return config
    encoder = DocumentEncoder(config, tokenizer, FACTS, POLICY, SEED)
    build(
        read_data_list(config.meta_path), encoder, BuildOptions(str(folder / "set")), {"rope_pos_id_version": "default"}
    )
    return replace(config, meta_path="", indexed_path=str(folder / "set"), packing_window=10)


@pytest.fixture
def encoder(data, tokenizer):
    return DocumentEncoder(data, tokenizer, FACTS, POLICY, SEED)


def loader(data, tokenizer, packs, asked, state=None):
    more = {"packs_per_step": packs, "state": state, "epochs": asked}
    return build_loader(data, tokenizer, FACTS, POLICY, seed=SEED, dp_rank=0, dp_size=1, **more)


def trained(data, tokenizer, packs, asked, steps, state=None):
    """Train on so many steps; return how often each line was seen, packs without a sample, and the loader."""
    opened, seen, empty = loader(data, tokenizer, packs, asked, state), Counter(), 0
    for batch in itertools.islice(opened, steps * packs):
        seen.update(source.line for source in batch.sources)
        empty += not batch.sources
    return seen, empty, opened


@pytest.mark.parametrize("asked", [1, 2, 3])
@pytest.mark.parametrize("packs", [1, 2, 4])
def test_every_sample_is_seen_as_often_as_asked(data, encoder, tokenizer, asked, packs):
    steps = steps_left(data, asked, encoder, packs)
    seen, empty, _ = trained(data, tokenizer, packs, asked, steps)
    assert seen == Counter({line: asked for line in range(1, 24)})
    assert empty < packs * (1 if data.meta_path else asked), "no step is without a sample"


@pytest.mark.parametrize("asked", [0.5, 1.25])
def test_a_part_of_an_epoch_is_a_part_of_its_samples(data, encoder, tokenizer, asked):
    seen, _, _ = trained(data, tokenizer, 1, asked, steps_left(data, asked, encoder, 1))
    assert sum(seen.values()) == pytest.approx(23 * asked, abs=1 if data.meta_path else 4)
    assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 4), (4, 2)])
def test_a_run_that_goes_on_keeps_the_meaning_with_other_packs_a_step(data, encoder, tokenizer, before, after):
    whole = steps_left(data, 3, encoder, before)
    first, _, opened = trained(data, tokenizer, before, 3, 2)
    state = json.loads(json.dumps(opened.state_dict()))
    left = steps_left(data, 3, encoder, after, state)
    assert before != after or left == whole - 2
    rest, _, _ = trained(data, tokenizer, after, 3, left, state)
    assert first + rest == Counter({line: 3 for line in range(1, 24)})


def test_nothing_is_left_of_a_run_that_is_done(data, encoder, tokenizer):
    steps = steps_left(data, 2, encoder, 2)
    _, _, opened = trained(data, tokenizer, 2, 2, steps)
    assert steps_left(data, 2, encoder, 2, opened.state_dict()) == 0
    assert steps_left(data, 3, encoder, 2, opened.state_dict()) > 0


def test_packs_of_an_epoch_are_told_where_counting_is_cheap(data, encoder):
    assert packs_of_epoch(data, encoder) == steps_left(data, 1, encoder, 1)
    assert packs_of_epoch(data, encoder, most=5) is None
    assert not data.meta_path or packs_of_epoch(data, encoder, seconds=-1) is None


def test_a_list_that_is_long_is_refused_with_the_command_that_makes_a_set(tokenizer, tmp_path, monkeypatch):
    config = config_for(write_dataset(tmp_path / "data"))
    monkeypatch.setattr(epochs, "MOST_COUNTED", 10)
    with pytest.raises(ConfigError, match=r"23 samples.*more than 10 are not counted.*tools/preprocess_data.py --out"):
        steps_left(config, 2, DocumentEncoder(config, tokenizer, FACTS, POLICY, SEED), 1)


def test_samples_that_cannot_be_used_are_left_out_of_the_count_or_refused(tokenizer, tmp_path):
    meta = write_dataset(tmp_path / "data")
    (tmp_path / "data" / "image" / "0.png").unlink()
    strict, lenient = config_for(meta), config_for(meta, max_skipped_samples=100)
    with pytest.raises(DataError, match="max_skipped_samples allows 0"):
        steps_left(strict, 1, DocumentEncoder(strict, tokenizer, FACTS, POLICY, SEED), 1)
    assert packs_of_epoch(strict, DocumentEncoder(strict, tokenizer, FACTS, POLICY, SEED)) is None
    steps = steps_left(lenient, 2, DocumentEncoder(lenient, tokenizer, FACTS, POLICY, SEED), 1)
    seen, empty, _ = trained(lenient, tokenizer, 1, 2, steps)
    assert not empty and set(seen.values()) == {2} and 0 < len(seen) < 23
