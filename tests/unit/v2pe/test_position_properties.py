"""What holds for positions of any document, at any stride, to four million tokens."""

from __future__ import annotations

import inspect
from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from position_documents import by_definition, counted, document

from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe import position_ids
from megatron_v2pe.v2pe.position_ids import continue_positions, position_ticks, to_float32
from megatron_v2pe.v2pe.settings import PUBLISHED_STRIDES, smallest_denominator
from megatron_v2pe.workshop.measuring.float_positions import collapsed, float_construction, miscounted

TOKENS_PER_TILE = (4, 49, 64, 100, 256, 1024)
ODD_STRIDES = (3, 5, 7, 100, 255, Fraction(1, 2), Fraction(1, 3), Fraction(5, 7), Fraction(129, 2))
STRIDES = (*PUBLISHED_STRIDES, *ODD_STRIDES)
FOUR_MILLION = 4 * 1024 * 1024

runs = st.lists(st.integers(0, 20) | st.tuples(st.integers(1, 4)), max_size=7)
any_stride = st.sampled_from(STRIDES) | st.fractions(min_value=Fraction(1, 50), max_value=300, max_denominator=50)


@st.composite
def documents(draw):
    """Length, images, strides and tokens per tile."""
    tokens_per_tile = draw(st.sampled_from(TOKENS_PER_TILE))
    length, images = document(draw(runs), tokens_per_tile)
    return length, images, [draw(any_stride) for _ in images], tokens_per_tile


def exactly_right(function, length, images, strides, tokens_per_tile) -> bool:
    ticks, denominator = counted(function(length, images, strides, tokens_per_tile))
    expected = [position * denominator for position in by_definition(length, images, strides, tokens_per_tile)]
    return ticks.tolist() == expected


@settings(deadline=None, max_examples=150)
@given(documents())
def test_equal_to_the_definition_in_exact_fractions(case):
    assert exactly_right(position_ticks, *case)


@settings(deadline=None, max_examples=150)
@given(documents())
def test_order_spans_and_text_steps(case):
    length, images, strides, tokens_per_tile = case
    ticks, denominator = counted(position_ticks(*case))
    steps = ticks.diff()
    assert len(ticks) == length and bool((steps > 0).all())  # rising, so no two tokens share a position
    text = torch.ones(length, dtype=torch.bool)
    for (start, tiles), stride in zip(images, strides, strict=True):
        end = start + tiles * tokens_per_tile
        text[start:end] = False
        inside = ticks[start - 1 : end].diff()
        assert bool((inside == inside[0]).all())  # one progression over all tiles
        assert Fraction(int(ticks[end - 1] - ticks[start - 1]), denominator) == stride * tiles
        assert ticks[end] - ticks[start - 1] == denominator * (ceil(Fraction(stride) * tiles) + 1)
    assert not (ticks[text] % denominator).any()
    neighbours = text[1:] & text[:-1]
    assert bool((steps[neighbours] == denominator).all())


@settings(deadline=None, max_examples=50)
@given(documents(), documents())
def test_a_pack_is_its_documents_on_one_lattice(one, two):
    """The finer lattice of a pack changes the ticks of a document, not its positions."""
    alone, denominator = counted(position_ticks(*one))
    tokens_per_tile = one[3]
    common = smallest_denominator([*one[2], *two[2]], tokens_per_tile) * 3
    packed, finer = counted(position_ticks(*one, common))
    assert finer == common and torch.equal(packed * denominator, alone * finer)


@settings(deadline=None, max_examples=50)
@given(documents(), st.data())
def test_masked_tokens_get_position_one_and_do_not_advance(case, data):
    length, images, strides, tokens_per_tile = case
    removed = data.draw(st.integers(0, length - images[-1][0] - images[-1][1] * tokens_per_tile if images else length))
    mask = torch.ones(length)
    mask[length - removed :] = 0
    ticks, denominator = counted(position_ticks(*case, mask=mask))
    kept, _ = counted(position_ticks(length - removed, images, strides, tokens_per_tile))
    assert torch.equal(ticks[: length - removed], kept)
    assert bool((ticks[length - removed :] == denominator).all())


def test_text_is_whole_after_a_masked_token_behind_a_fractional_image():
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 1, 1])
    ticks, denominator = counted(position_ticks(8, [(1, 1)], [Fraction(1, 2)], 4, mask=mask))
    assert (ticks / denominator).tolist() == [0, 0.125, 0.25, 0.375, 0.5, 1, 2, 3]


@pytest.mark.parametrize("tokens_per_tile", TOKENS_PER_TILE)
def test_exact_to_four_million_tokens(tokens_per_tile):
    """An image at the far end, and one beyond: every step is the stride over the tokens of a tile, no token is lost."""
    for stride in STRIDES:
        start = FOUR_MILLION - 2 * tokens_per_tile
        length = FOUR_MILLION + 4
        ticks, denominator = counted(position_ticks(length, [(start, 2)], [stride], tokens_per_tile))
        assert len(ticks) == length and Fraction(int(ticks[start - 1]), denominator) == start - 1
        image = ticks[start - 1 : FOUR_MILLION]
        step = Fraction(stride) * denominator / tokens_per_tile
        assert step.denominator == 1 and bool((image.diff() == step.numerator).all())
        after = start - 1 + ceil(Fraction(stride) * 2) + 1
        assert Fraction(int(ticks[FOUR_MILLION]), denominator) == after


@pytest.mark.parametrize("offset", [65_536, 131_072, 262_144, 524_288, 1_048_576, FOUR_MILLION])
def test_offsets_do_not_change_an_image(offset):
    """The same image later in the text: every position moves by the offset, at every stride and tile."""
    for tokens_per_tile in TOKENS_PER_TILE:
        length, images = document([1, (2,), 2], tokens_per_tile)
        moved = [(start + offset, tiles) for start, tiles in images]
        for stride in STRIDES:
            near, denominator = counted(position_ticks(length, images, [stride], tokens_per_tile))
            far, _ = counted(position_ticks(length + offset, moved, [stride], tokens_per_tile))
            assert torch.equal(far[offset:], near + offset * denominator)


def test_why_a_lattice_float_positions_collapse():
    """256 tokens of a tile at stride 1 share 129, 65, 33, 17 float32 positions; the lattice keeps 256."""
    for offset, distinct in ((65_536, 129), (131_072, 65), (262_144, 33), (524_288, 17)):
        images = [(offset + 1, 1)]
        length = offset + 300
        ticks, denominator = counted(position_ticks(length, images, [1], 256))
        tile = slice(offset + 1, offset + 257)
        assert len(ticks[tile].unique()) == 256
        # One float32 rounding of the exact positions is the best a float construction can do.
        rounded = to_float32(ticks, denominator)
        assert len(rounded[offset : offset + 257].unique()) == distinct
        assert collapsed(rounded) > 0
        assert miscounted(float_construction(length, images, [1], 256), images, 256) == 1


@pytest.mark.parametrize(("stride", "first"), [(1, 65_535), (2, 131_070), (4, 262_140), (8, 524_280), (16, 1_048_560)])
def test_why_a_lattice_float_positions_miscount(stride, first):
    """From `<img>` at 65,535 strides on, the float construction makes 1 element too many or too few."""
    for begin, wrong in ((first - 1, 0), (first, 1)):
        images = [(begin + 1, 1)]
        length = begin + 260
        theirs = float_construction(length, images, [stride], 256)
        assert miscounted(theirs, images, 256) == wrong, theirs.counts
        ticks, denominator = counted(position_ticks(length, images, [stride], 256))
        assert len(ticks) == length
        assert ticks[begin + 257] == (begin + stride + 1) * denominator


def test_why_a_lattice_tiles_not_a_power_of_two():
    """With 49 or 100 tokens per tile floats already fail within the first eighteen positions."""
    for tokens_per_tile in (49, 100):
        failures = 0
        for begin in range(18):
            for stride in PUBLISHED_STRIDES:
                length, images = document([begin, (3,), 2], tokens_per_tile)
                theirs = float_construction(length, images, [stride], tokens_per_tile)
                failures += miscounted(theirs, images, tokens_per_tile)
                assert exactly_right(position_ticks, length, images, [stride], tokens_per_tile)
        assert failures > 0


REST = "(-(step * counts) % denominator)[followed]"
BREAKS = {
    "the rest to the next whole position forgotten": (REST, "(0 * counts)[followed]"),
    "rest of one tile only": (REST, "(-(step * tokens_per_tile) % denominator)[followed]"),
    "first image token advances by 1": (
        "    advance.cumsum(out=advance)\n",
        "    advance.cumsum(out=advance)\n    np.add.at(advance, starts, denominator - step)\n",
    ),
    "text after an image keeps the image's step": ("(denominator - step)[followed]", "(0 * step)[followed]"),
    "stride of the first image for all": ("step_of[stride] for stride", "step_of[strides[0]] for stride"),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_planted_breaks_are_caught(change):
    """Each slip, planted in the source of the function, fails the comparison with the definition."""
    source = inspect.getsource(position_ticks)
    assert source.count(change[0]) == 1
    namespace = dict(vars(position_ids))
    exec(compile(source.replace(*change), "planted", "exec"), namespace)
    length, images = document([3, (3,), 2, (2,), 4], 49)
    case = (length, images, [Fraction(1, 4), 7], 49)
    assert exactly_right(position_ticks, *case)
    assert not exactly_right(namespace["position_ticks"], *case)


@pytest.mark.parametrize(
    ("images", "strides", "words"),
    [
        ([(1, 1)], [], "1 images but 0 strides"),
        ([(-1, 1)], [1], "images reach from -1 to 3 in a document of 20 tokens"),
        ([(17, 1)], [1], "images reach from 17 to 21 in a document of 20 tokens"),
        ([(1, 2), (8, 1)], [1, 1], "image 1 starts at 8, before image 0 ends at 9"),
        ([(1, 1), (8, 0)], [1, 1], "image 1 has no tiles, from 8 to 8"),
        ([(1, 1)], [0], "stride 0 over 4 tokens per tile is not a positive multiple of 1/4"),
        ([(1, 1)], [-2], "stride -2 over 4 tokens per tile is not a positive multiple of 1/4"),
    ],
)
def test_what_does_not_fit_is_refused(images, strides, words):
    with pytest.raises(DataError, match=words):
        position_ticks(20, images, strides, 4)


def test_a_stride_off_the_lattice_is_refused():
    with pytest.raises(DataError, match="stride 1/3 over 4 tokens per tile is not a positive multiple of 1/8"):
        position_ticks(20, [(1, 1)], [Fraction(1, 3)], 4, denominator=8)
    assert smallest_denominator([Fraction(1, 3), Fraction(1, 2), 5], 4) == 24


def test_decoding_continues_a_fraction_by_whole_positions():
    ticks, denominator = counted(position_ticks(5, [(1, 1)], [Fraction(1, 2)], 4))
    assert Fraction(int(ticks[-1]), denominator) == Fraction(1, 2)
    following = continue_positions(int(ticks[-1]), 2, denominator).tolist()
    assert [Fraction(tick, denominator) for tick in following] == [Fraction(3, 2), Fraction(5, 2)]
