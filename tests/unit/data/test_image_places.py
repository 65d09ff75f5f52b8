"""Where images stand in a conversation whose text does not say."""

from __future__ import annotations

import pytest

from megatron_v2pe.data.conversation import SYSTEM
from megatron_v2pe.data.tokenize import image_lines, with_images, with_placeholder

ASKED = [("human", "Hello"), ("gpt", "Yes?"), ("human", "What is this?")]


@pytest.mark.parametrize(
    ("turns", "count", "expected"),
    [
        (ASKED[2:], 0, "What is this?"),
        (ASKED[2:], 1, "<image>\nWhat is this?"),
        (ASKED[2:], 2, "Image-1: <image>\nImage-2: <image>\nWhat is this?"),
        ([("human", "a <image> b")], 1, "a <image> b"),
        ([("human", "a <image> b")], 2, "a <image> b"),  # it places one, so it should have placed both: refused later
        ([(SYSTEM, "Be short."), *ASKED[2:]], 2, "Be short.|Image-1: <image>\nImage-2: <image>\nWhat is this?"),
        (ASKED, 1, "<image>\nHello|Yes?|What is this?"),
        ([*ASKED[:2], ("human", "<image>\nWhat is this?")], 1, "Hello|Yes?|<image>\nWhat is this?"),
        ([*ASKED[:2], ("human", "<image>\nWhat is this?")], 2, "Hello|Yes?|<image>\nWhat is this?"),
    ],
)
def test_images_go_before_the_first_question_unless_a_turn_places_one(turns, count, expected):
    assert "|".join(text for _, text in with_images(turns, count)) == expected


def test_one_image_is_placed_as_training_places_it():
    for turns in (ASKED, ASKED[2:], [(SYSTEM, "Be short."), *ASKED], [("human", "x <image>")]):
        assert with_images(turns, 1) == with_placeholder(turns)


def test_numbers_go_on_behind_the_images_a_conversation_has_shown():
    assert image_lines(2, 3) == "Image-4: <image>\nImage-5: <image>\n"
    assert image_lines(1, 3) == "<image>\n" and image_lines(0, 3) == ""
