"""Images of a document are found by their marks and checked against their tile counts."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.position_ids import find_images

TEXT, START, END, CONTEXT = 1, 503, 504, 505


def image(tokens: int) -> list[int]:
    return [START, *[CONTEXT] * tokens, END]


def find(ids, num_tiles):
    return find_images(torch.tensor(ids, dtype=torch.int64), num_tiles, 4, START, END, CONTEXT)


def test_images_are_found_in_order():
    ids = [TEXT, TEXT, *image(8), *image(4), TEXT]
    assert find(ids, [2, 1]) == [(3, 2), (13, 1)]
    assert find([TEXT] * 3, []) == find([], []) == []


def test_a_stray_end_mark_in_text_does_no_harm():
    assert find([END, TEXT, *image(4)], [1]) == [(3, 1)]


@pytest.mark.parametrize(
    ("ids", "num_tiles", "words"),
    [
        (image(4), [], "1 <img> tokens in the text, but 0 images"),
        ([TEXT], [1], "0 <img> tokens in the text, but 1 images"),
        (
            [TEXT, *image(7)],
            [2],
            r"image 0: 7 image tokens follow <img> at index 1, expected 2 tiles x 4 = 8",
        ),
        ([*image(4), *image(4)], [1, 2], r"image 1: 4 image tokens follow <img> at index 6, expected 2 tiles x 4 = 8"),
        (image(5), [1], "image 0: no </img> at index 5 after 1 tiles of 4 tokens"),
        (image(4)[:-1], [1], "image 0: no </img> at index 5"),
        ([START, CONTEXT, CONTEXT], [1], "image 0: 2 image tokens follow <img> at index 0, expected 1 tiles x 4 = 4"),
        ([TEXT, START], [1], "image 0: 0 image tokens follow <img> at index 1"),
        ([*image(4), CONTEXT, TEXT], [1], "5 image tokens in the text, but 4 belong to images"),
    ],
)
def test_what_does_not_agree_is_refused_with_both_numbers(ids, num_tiles, words):
    with pytest.raises(DataError, match=words):
        find(ids, num_tiles)


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_an_image_token_replaced_by_text_is_seen(place):
    ids = image(4)
    ids[place] = TEXT
    with pytest.raises(DataError, match="image 0: 3 image tokens follow"):
        find(ids, [1])
