"""A small world to build from, as files."""

from __future__ import annotations

import pytest
from long_context_world import IMAGES, PATCHES, World, colour, line, write_text
from PIL import Image

from megatron_v2pe.workshop.long_context.pipeline import Encoding
from megatron_v2pe.workshop.synthetic.small_data import FACTS


@pytest.fixture
def world(tmp_path, tokenizer) -> World:
    (tmp_path / "image").mkdir()
    (tmp_path / "needles").mkdir()
    rows = []
    for number in range(IMAGES):
        size = (28 + 14 * (number % 4), 56 - 7 * (number % 3))
        Image.new("RGB", size, colour(number)).save(tmp_path / "image" / f"{number}.png")
        rows.append(line(f"<image>\nwhat is {number}", f"it is {number}", image=f"{number}.png"))
    rows += [line("two <image> <image>", image=["0.png", "1.png"]), line("text"), line("<image>\nsee", video="v/")]
    rows.append(line("<image>\nwhat is </img>", image="2.png"))
    (tmp_path / "all.jsonl").write_text("\n".join(rows) + "\n")
    for number in range(5):
        picture = Image.new("RGB", (40 + 4 * number, 36), (255, 0, 10 * number))
        picture.paste((0, 250 - 10 * number, 0), (20, 18, 40 + 4 * number, 36))
        picture.save(tmp_path / "needles" / f"{number}.png")
    write_text(tmp_path / "text.txt", 400)
    return World(tmp_path, Encoding(tokenizer, "internlm2-chat", FACTS.tile_size, FACTS.tokens_per_tile, PATCHES))
