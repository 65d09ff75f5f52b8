"""Who encodes which tiles, and whether every feature arrives on its token: all ranks played through in one process.

Features are unique numbers. Every rank plans its exchange, the plans' rows change hands in plain Python, and the result
is held against the pack with its features in place, cut by the layout.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_v2pe.errors import LayoutError
from megatron_v2pe.models.micro_batch import IGNORE_INDEX, PackCutter, TensorPack
from megatron_v2pe.parallel import image_routing
from megatron_v2pe.parallel.image_routing import ImageRouting
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates, tiles_of
from megatron_v2pe.v2pe.position_ids import Ticks

IMAGE, TEXT, TOKENS_PER_TILE = 7, 1, 4
PLACEMENTS = [
    RankCoordinates(
        context_parallel_size=context,
        tensor_model_parallel_size=tensor,
        sequence_parallel=sequence_parallel,
        vision_parallel=vision,
    )
    for context in (1, 2, 3, 4)
    for tensor in (1, 2)
    for sequence_parallel in (False, True)[:tensor]
    for vision in ("tensor", "replicated")[:tensor]
]
PACKS = {
    "several documents": ["ttIt", "ttttt", "IIIttIt", "t"],
    "one long document of one tile": ["t" * 9 + "I" + "t" * 20],
    "more tiles than ranks": ["tI" * 13, "I" * 7],
    "images alone": ["I", "I", "I"],
    "text alone": ["ttt", "t"],
    "nothing": [],
}
"""Documents: `t` is a token of text, `I` the tokens of a tile."""


def name_of(coordinates):
    sizes = f"cp{coordinates.context_parallel_size}-tp{coordinates.tensor_model_parallel_size}"
    return f"{sizes}-{coordinates.vision_parallel}{'-sp' * coordinates.sequence_parallel}"


ALL_PLACEMENTS = pytest.mark.parametrize("coordinates", PLACEMENTS, ids=name_of)
DOCUMENTS = st.lists(st.text("tI", min_size=1, max_size=12), max_size=5)


def pack_of(documents):
    """Ids of a pack's tokens, lengths of its documents, number of its tiles."""
    ids = [[TEXT] if part == "t" else [IMAGE] * TOKENS_PER_TILE for document in documents for part in document]
    lengths = tuple(sum(1 if part == "t" else TOKENS_PER_TILE for part in document) for document in documents)
    return torch.tensor(sum(ids, []), dtype=torch.int64), lengths, "".join(documents).count("I")


def members_of(coordinates):
    """Every rank that works on the pack."""
    return [
        coordinates.neighbour(n)
        for n in range(coordinates.context_parallel_size * coordinates.tensor_model_parallel_size)
    ]


def exchange_of(place):
    """Numbers, in `members_of`, of the ranks this one exchanges features with, in the order of the group."""
    if place.replicated_vision:
        return list(range(place.num_encoders))
    tensor = place.tensor_model_parallel_size
    return [context * tensor + place.tensor_model_parallel_rank for context in range(place.context_parallel_size)]


def check_exchange(documents, coordinates):
    """Play the exchange through on all ranks."""
    ids, lengths, num_tiles = pack_of(documents)
    layout = coordinates.layout(lengths)
    image_tokens = (ids == IMAGE).nonzero().squeeze(1)
    features = torch.arange(1, num_tiles * TOKENS_PER_TILE + 1)  # 0 stands for "no feature"
    in_place = torch.zeros_like(ids)
    in_place[image_tokens] = features
    ranks = members_of(coordinates)
    plans = [ImageRouting.plan(image_tokens, num_tiles, TOKENS_PER_TILE, layout, place) for place in ranks]
    sent = []
    for place, plan in zip(ranks, plans, strict=True):
        tiles = place.tiles(num_tiles)
        own = features[tiles.start * TOKENS_PER_TILE : tiles.stop * TOKENS_PER_TILE]
        assert all(0 <= row < len(own) for row in plan.send_rows.tolist())
        sent.append(own[plan.send_rows].split(plan.send_counts))
    for number, (place, plan) in enumerate(zip(ranks, plans, strict=True)):
        group = exchange_of(place)
        mine = group.index(number)
        assert plan.receive_counts == tuple(plans[other].send_counts[mine] for other in group)
        arrived = torch.cat([sent[other][mine] for other in group])
        expected = layout.shard(in_place, place.context_parallel_rank, 0)
        if place.split_rows:
            expected = expected.chunk(place.tensor_model_parallel_size)[place.tensor_model_parallel_rank]
        assert plan.receive_rows.unique().numel() == plan.receive_rows.numel()
        hidden = torch.zeros_like(expected)
        hidden[plan.receive_rows] = arrived
        assert hidden.tolist() == expected.tolist()
    copies = 1 if coordinates.split_rows else coordinates.tensor_model_parallel_size
    assert Counter(torch.cat([torch.cat(parts) for parts in sent]).tolist()) == dict.fromkeys(features.tolist(), copies)


@given(st.integers(1, 40), st.integers(0, 200))
def test_tiles_are_dealt_out_once_in_order_and_evenly(num_encoders, num_tiles):
    shares = [tiles_of(encoder, num_encoders, num_tiles) for encoder in range(num_encoders)]
    assert [tile for share in shares for tile in share] == list(range(num_tiles))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1


@ALL_PLACEMENTS
def test_members_of_the_joint_group_stand_tensor_parallel_ranks_first(coordinates):
    ranks = members_of(coordinates)
    tensor = coordinates.tensor_model_parallel_size
    assert [place.context_parallel_rank * tensor + place.tensor_model_parallel_rank for place in ranks] == list(
        range(len(ranks))
    )
    assert ranks[-1].neighbour(0) == coordinates
    encoders = [place.encoder for place in ranks]
    assert encoders == [number if coordinates.replicated_vision else number // tensor for number in range(len(ranks))]
    assert coordinates.num_encoders == len(set(encoders))


def test_neighbours_written_out():
    place = RankCoordinates(0, 2, 1, 3)
    assert place.neighbour(4) == RankCoordinates(1, 2, 1, 3) and place.neighbour(2) == RankCoordinates(0, 2, 2, 3)


@ALL_PLACEMENTS
@pytest.mark.parametrize("pack", PACKS)
def test_every_feature_arrives_on_its_token(pack, coordinates):
    check_exchange(PACKS[pack], coordinates)


@settings(deadline=None)
@given(DOCUMENTS, st.sampled_from(PLACEMENTS))
def test_every_feature_arrives_on_its_token_in_any_pack(documents, coordinates):
    check_exchange(documents, coordinates)


def test_the_cases_hold_what_they_promise():
    """A tile on two ranks, and ranks without tiles."""
    ids, lengths, num_tiles = pack_of(PACKS["one long document of one tile"])
    context, _ = RankCoordinates(context_parallel_size=4).layout(lengths).find((ids == IMAGE).nonzero().squeeze(1))
    assert context.unique().numel() > 1
    assert [len(tiles_of(encoder, 4, num_tiles)) for encoder in range(4)] == [0, 0, 0, 1]


@pytest.mark.parametrize("fault", ["tiles dealt out anew", "order of sending", "runs instead of zigzag"])
def test_planted_breaks_are_seen(monkeypatch, fault):
    if fault == "tiles dealt out anew":  # the plan takes other tiles than the encoders
        monkeypatch.setattr(image_routing, "tiles_of", lambda encoder, of, tiles: tiles_of(of - 1 - encoder, of, tiles))
    elif fault == "order of sending":
        monkeypatch.setattr(torch.Tensor, "argsort", lambda tensor, stable: torch.arange(len(tensor)))
    else:  # tokens are looked for in runs, one per rank, instead of zigzag
        layout = type(RankCoordinates().layout((1,)))
        monkeypatch.setattr(
            layout,
            "find",
            lambda self, tokens: (tokens // self.num_local_tokens, tokens % self.num_local_tokens),
        )
    with pytest.raises(AssertionError):
        check_exchange(PACKS["several documents"], RankCoordinates(context_parallel_size=2))


@pytest.mark.parametrize("num_tiles", [0, 1, 3])
def test_tiles_and_image_tokens_that_differ_are_told(num_tiles):
    ids, lengths, _ = pack_of(["tItIt"])
    message = f"8 image tokens in the input, but {num_tiles} tiles of 4 tokens give {num_tiles * 4} features"
    with pytest.raises(LayoutError, match=message):
        cut(ids, lengths, RankCoordinates(context_parallel_size=2), num_tiles=num_tiles)


def cut(ids, lengths, coordinates, num_tiles, ticks=None, labels=None, weights=None):
    """A rank's share of a pack whose positions are 0, 1, 2, ..."""
    ticks = torch.arange(sum(lengths)) if ticks is None else ticks
    pack = TensorPack(ids, Ticks(ticks, 1), lengths, labels, weights, num_tiles=[num_tiles])
    return PackCutter(coordinates, IMAGE, TOKENS_PER_TILE).cut(pack)


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("what", ["ids", "ticks", "labels", "weights"])
@pytest.mark.parametrize("change", [-1, 2])
def test_tensors_that_do_not_cover_the_documents_are_refused(what, change, context):
    ids, lengths, num_tiles = pack_of(["tItt", "ttt"])
    tokens = sum(lengths)
    tensors = {name: torch.ones(tokens, dtype=torch.int64) for name in ("ticks", "labels", "weights")} | {"ids": ids}
    tensors[what] = torch.cat([tensors[what], torch.full((2,), IMAGE)])[: tokens + change]
    with pytest.raises(LayoutError, match=rf"{tokens + change} values to shard, but documents of {tokens} tokens"):
        cut(lengths=lengths, coordinates=RankCoordinates(context_parallel_size=context), num_tiles=num_tiles, **tensors)


@settings(deadline=None)
@given(DOCUMENTS, st.sampled_from(PLACEMENTS), st.randoms(use_true_random=False))
def test_targets_of_all_ranks_are_the_supervised_tokens(documents, coordinates, random):
    ids, lengths, num_tiles = pack_of(documents)
    chosen = [random.random() < 0.4 for _ in ids]
    labels = torch.tensor([100 + n if kept else IGNORE_INDEX for n, kept in enumerate(chosen)], dtype=torch.int64)
    weights = torch.arange(len(ids)) / 8 + 1
    slices = coordinates.tensor_model_parallel_size if coordinates.sequence_parallel else 1
    found = []
    for place in members_of(coordinates):
        batch = cut(ids, lengths, place, num_tiles, labels=labels, weights=weights)
        targets = batch.targets
        held = batch.layout.tokens_of(place.context_parallel_rank)
        assert held[targets.rows].tolist() == (targets.tokens - 100).tolist()
        assert targets.weights.tolist() == weights[held[targets.rows]].tolist()
        per_slice = (targets.rows // (batch.layout.num_local_tokens // slices)).tolist()
        assert list(targets.slice_counts) == [per_slice.count(number) for number in range(slices)]
        if place.tensor_model_parallel_rank == 0:
            found += targets.tokens.tolist()
    assert sorted(found) == labels[labels != IGNORE_INDEX].tolist()
