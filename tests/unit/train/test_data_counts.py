"""What has been drawn of the data: counted by hand, added up, and brought through a checkpoint."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_v2pe.data.batch import collate
from megatron_v2pe.data.types import Picture, SampleId, TrainingDocument
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.train.data_counts import DataCounts
from megatron_v2pe.train.data_feed import Totals
from megatron_v2pe.train.page.bins import LENGTH_BINS, TILE_BINS, length_bin, length_range, tile_bin, tile_range
from megatron_v2pe.v2pe.position_ids import Ticks

NAMES = ("chart", "text", "never")


def document(dataset, tokens, supervised, tiles=0):
    labels = torch.full((tokens,), -100)
    labels[tokens - supervised :] = 7
    return TrainingDocument(
        input_ids=torch.arange(tokens),
        labels=labels,
        position_ticks=Ticks(torch.arange(tokens), 1),
        images=((1, tiles),) if tiles else (),
        pictures=(Picture("a.png", (tiles, 1)),) if tiles else (),
        source=SampleId(dataset, 1, "a.jsonl"),
    )


def batch(*documents):
    tiles = sum(one.num_tiles for one in documents)
    return collate(documents, torch.zeros(tiles, 2, 2, 3, dtype=torch.uint8), "square", 1)


BATCHES = [
    batch(document("text", 16, 4), document("chart", 100, 9, tiles=3)),
    batch(document("chart", 5, 1), document("chart", 17, 0, tiles=40)),
]


def test_counts_written_out():
    drawn = DataCounts.of(BATCHES, NAMES)
    assert drawn.figure("samples") == [3, 1, 0]
    assert drawn.figure("tokens") == [122, 16, 0]
    assert drawn.figure("tiles") == [43, 0, 0]
    assert drawn.figure("supervised") == [10, 4, 0]
    assert drawn.figure("weight") == pytest.approx([4.0, 2.0, 0.0])  # n tokens of weight 1 / sqrt(n) each
    assert {b: n for b, n in enumerate(drawn.lengths) if n} == {4: 1, 8: 2, 13: 1}
    assert {b: n for b, n in enumerate(drawn.tiles) if n} == {0: 2, 3: 1, 32: 1}


def test_counts_travel_in_the_vector_of_a_step():
    totals = Totals.of(BATCHES, NAMES)
    both = Totals.from_vector(totals.to_vector() + Totals.of(BATCHES[:1], NAMES).to_vector(), NAMES)
    assert both.packs == 3 and both.tokens == 138 + 116
    assert both.weight == pytest.approx(sum(both.drawn.figure("weight")))
    assert both.drawn.figure("samples") == [4, 2, 0]


def test_without_names_nothing_is_counted_by_set():
    assert DataCounts.of(BATCHES, ()).counts.sum() == 0


def test_the_way_through_a_checkpoint():
    drawn = DataCounts.of(BATCHES, NAMES)
    state = json.loads(json.dumps(drawn.to_json()))
    back = DataCounts.from_json(state, NAMES, "state")
    assert torch.equal(back.counts, drawn.counts)
    other = DataCounts.from_json(state, ("new", "text"), "state")
    assert other.figure("samples") == [0, 1] and other.lengths == drawn.lengths
    with pytest.raises(CheckpointError, match="lengths has 2 bins"):
        DataCounts.from_json({**state, "lengths": [1, 2]}, NAMES, "state")


@pytest.mark.parametrize(
    ("bin_of", "range_of", "bins", "least"),
    [(length_bin, length_range, LENGTH_BINS, 1), (tile_bin, tile_range, TILE_BINS, 0)],
)
def test_bins_are_where_their_ranges_say(bin_of, range_of, bins, least):
    reached = least
    for number in range(bins):
        first, last = range_of(number)
        if last < first:  # between 1 and 2 lies no bin's whole number
            continue
        assert first == reached and bin_of(first) == number and bin_of(last) == number
        reached = last + 1
