"""How many tiles an image may have: the checkpoint's number, the benchmark's, the user's, and the image's own."""

from __future__ import annotations

from typing import Any, cast

import pytest

from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.evaluate.benchmark import ImageRef
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.prompting import Prompter


@pytest.mark.parametrize(
    ("benchmark", "of_image", "user", "most"),
    [
        ("chartqa_human", None, None, 12),  # what the benchmark says
        ("chartqa_human", None, 3, 3),  # the user comes before it, in both directions
        ("chartqa_human", None, 20, 20),
        ("mvbench", None, None, 7),  # the checkpoint's where the benchmark says nothing
        ("chartqa_human", 2, None, 2),  # an image's own number is never exceeded
        ("chartqa_human", 2, 20, 2),
        ("chartqa_human", 4, 3, 3),
    ],
)
def test_most_tiles(benchmark, of_image, user, most):
    anything = cast(Any, None)
    prompter = Prompter(anything, anything, anything, TilingOptions(448, min_num=1, max_num=7), user)
    made = create(benchmark)
    if benchmark == "mvbench":
        made.max_tiles = None
    options = prompter._options(made, ImageRef("image.png", max_tiles=of_image))
    assert options.max_num == most and options.min_num <= most
