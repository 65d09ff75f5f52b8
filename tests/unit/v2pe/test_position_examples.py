"""Worked examples of positions (256 tokens per tile): text, images, packs, padding, decoding."""

from __future__ import annotations

import torch
from position_documents import counted, document

from megatron_v2pe.v2pe.position_ids import continue_positions, position_ticks, to_float32
from megatron_v2pe.v2pe.settings import PUBLISHED_STRIDES

N = 256
E1 = document([4, (1,), 3], N)
E2 = document([2, (3,), 5, (1,), 2], N)


def positions(layout, *strides, mask=None):
    """Float32 positions of a document, one stride per image."""
    return to_float32(*counted(position_ticks(*layout, strides, N, mask=mask)))


def visual(begin: float, delta: float, count: int) -> list[float]:
    """The tokens of an image whose `<img>` is at `begin`."""
    return [begin + delta * k for k in range(1, count + 1)]


def test_e1_one_image():
    expected = [0, 1, 2, 3, 4, *visual(4, 0.25, N), 69, 70, 71, 72]
    assert E1[0] == 265 and expected[5] == 4.25 and expected[260] == 68
    assert positions(E1, 64).tolist() == expected


def test_e1_other_strides():
    assert positions(E1, N).tolist() == list(range(265))
    one = positions(E1, 1)
    assert one[[4, 5, 260, 261, 262, 264]].tolist() == [4, 4.00390625, 5, 6, 7, 9]
    hundred = positions(E1, 100)
    assert hundred[[5, 260, 261, 262, 264]].tolist() == [4.390625, 104, 105, 106, 108]


def test_e2_two_images():
    expected = [0, 1, 2, *visual(2, 0.0625, 768), *range(51, 58), *visual(57, 0.0625, N), 74, 75, 76]
    assert E2[0] == 1037
    assert positions(E2, 16, 16).tolist() == expected
    expected = [0, 1, 2, *visual(2, 1 / 256, 768), *range(6, 13), *visual(12, 1 / 256, N), 14, 15, 16]
    assert positions(E2, 1, 1).tolist() == expected
    assert positions(E2, 256, 256).tolist() == list(range(1037))


def test_e3_adjacent_images():
    expected = [0, 1, *visual(1, 0.125, N), 34, 35, *visual(35, 0.125, N), 68, 69]
    assert positions(document([1, (1,), (1,), 1], N), 32, 32).tolist() == expected


def test_e4_image_first_stride_not_a_power_of_two():
    expected = [0, *visual(0, 0.01171875, 7 * N), 22, 23, 24]
    assert positions(document([(7,), 2], N), 3).tolist() == expected


def test_e5_drawn_strides_are_given_explicitly():
    expected = [0, 1, 2, *visual(2, 0.25, 512), *range(131, 138), *visual(137, 0.25, N), 202, 203, 204]
    assert positions(document([2, (2,), 5, (1,), 2], N), 64, 64).tolist() == expected


def test_e6_right_padding():
    layout = document([3, (1,), 4], N)
    mask = torch.ones(layout[0], dtype=torch.int64)
    mask[-2:] = 0
    assert positions(layout, 64, mask=mask)[-6:].tolist() == [67, 68, 69, 70, 1, 1]


def test_e7_packed_documents_restart():
    first, denominator = counted(position_ticks(*E1, [64], N))
    second, _ = counted(position_ticks(3, [], [], N, denominator))
    packed = to_float32(torch.cat([first, second]), denominator)
    assert len(packed) == 268 and packed[260:].tolist() == [68, 69, 70, 71, 72, 0, 1, 2]


def test_e8_decoding_advances_by_one():
    ticks, denominator = counted(position_ticks(*E1, [64], N))
    assert to_float32(continue_positions(int(ticks[-1]), 3, denominator), denominator).tolist() == [73, 74, 75]


def test_text_only_and_empty_documents():
    assert positions((5, [])).tolist() == [0, 1, 2, 3, 4]
    assert positions((0, [])).tolist() == []


def test_prompt_ending_in_an_image():
    """Cut after the last image token: nothing follows that the rest could be added to."""
    assert positions((259, [(3, 1)]), 64)[-1] == 66


def test_a_full_stride_is_the_ordinary_position_for_every_published_stride_below_it():
    for tokens_per_tile in PUBLISHED_STRIDES:
        length, images = document([3, (2,), 1, (1,), 2], tokens_per_tile)
        ticks, denominator = counted(position_ticks(length, images, [tokens_per_tile] * 2, tokens_per_tile))
        assert torch.equal(ticks, torch.arange(length) * denominator)
