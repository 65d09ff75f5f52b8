"""Long-VQA: exact lengths, the right image under the right number, distractors, and what cannot be made."""

from __future__ import annotations

import json
import re
from itertools import islice

import pytest
from long_context_world import IMAGES, colour, line
from PIL import Image

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.workshop.long_context import image_pool
from megatron_v2pe.workshop.long_context.built import TRAINING_LINES
from megatron_v2pe.workshop.long_context.draws import Draws, TokenRange
from megatron_v2pe.workshop.long_context.forms import ImageForm, PasteForm
from megatron_v2pe.workshop.long_context.image_pool import ImagePool
from megatron_v2pe.workshop.long_context.long_vqa import LongVqaBuilder, LongVqaSettings
from megatron_v2pe.workshop.long_context.write import write_data_set


def builder(world, target, form="image", text=True, pools=None, seed=1, columns=2, rows=2, **settings):
    budget = world.budget
    chosen = ImageForm(budget) if form == "image" else PasteForm(budget, columns, rows, world.encoding.tile_size)
    settings = LongVqaSettings(seed, TokenRange.parse(str(target)), **settings)
    return LongVqaBuilder(pools or [world.pool], budget, chosen, settings, world.text if text else None)


def written(world, made, samples, name="out"):
    """Write a data set; return its lines and the lengths training gives them."""
    folder = world.folder / name
    folder.mkdir()
    write_data_set(made, samples, folder, folder, name)
    lines = [json.loads(text) for text in (folder / TRAINING_LINES).read_text().splitlines()]
    return lines, world.lengths(folder / "meta.json")


@pytest.mark.parametrize("form", ["image", "paste"])
@pytest.mark.parametrize("questions", [1, 3])
def test_with_text_every_sample_has_exactly_its_target(world, form, questions):
    lines, lengths = written(world, builder(world, "500:700", form, questions=questions, reuse_images=True), 12)
    for row, length in zip(lines, lengths, strict=True):
        assert length == row["metadata"]["context_length"] == row["metadata"]["target_tokens"]
        assert len(row["conversations"]) == 2 * questions
    assert len(set(lengths)) > 6 and min(lengths) >= 500 and max(lengths) <= 700


@pytest.mark.parametrize("form", ["image", "paste"])
def test_without_text_what_is_left_is_less_than_an_image(world, form):
    lines, lengths = written(world, builder(world, "400:500", form, text=False, reuse_images=True), 12)
    encoding = world.encoding
    sizes = [Image.open(path).size for path in (world.folder / "image").iterdir()]
    most = max(map(encoding.tiles, sizes)) if form == "image" else encoding.tiles((28, 28))
    for row, length in zip(lines, lengths, strict=True):
        assert length == row["metadata"]["context_length"]
        spare = 24  # the number of an image, and what a reference of many digits may take
        assert 0 <= row["metadata"]["target_tokens"] - length < most * encoding.tokens_per_tile + 2 + spare


def test_a_question_names_the_number_of_its_image(world):
    lines, _ = written(world, builder(world, 500, questions=2), 12)
    for row in lines:
        first = row["conversations"][0]["value"]
        numbers = [int(number) for number in re.findall(r"^Image-(\d+): <image>$", first, re.M)]
        assert numbers == list(range(1, len(row["image"]) + 1)) and len(numbers) == first.count("<image>")
        for turn, asked in enumerate(row["metadata"]["asked"]):
            question, answer = (row["conversations"][2 * turn + i]["value"] for i in range(2))
            number, what = re.findall(r"Question about Image-(\d+): what is (\d+)$", question)[0]
            assert int(number) == asked["image"] and answer == f"it is {what}"
            assert row["image"][asked["image"] - 1] == str(world.folder / "image" / f"{what}.png")
            assert asked["source"] == f"{world.folder}/all.jsonl:{int(what) + 1}"
        assert len(set(row["image"])) == len(row["image"])


def test_a_question_names_row_and_column_on_a_canvas(world):
    lines, _ = written(world, builder(world, 520, "paste", questions=2, columns=3, reuse_images=True), 8)
    pattern = r"Question about the picture in row (\d+), column (\d+) of Image-(\d+): what is (\d+)$"
    for row in lines:
        for turn, asked in enumerate(row["metadata"]["asked"]):
            found = re.findall(pattern, row["conversations"][2 * turn]["value"])[0]
            place, what = [int(number) for number in found[:3]], int(found[3])
            assert place == [asked["row"], asked["column"], asked["image"]]
            canvas = Image.open(world.folder / "out" / row["image"][asked["image"] - 1])
            pixel = canvas.getpixel((28 * asked["column"] - 14, 28 * asked["row"] - 14))
            assert max(abs(a - b) for a, b in zip(pixel, colour(what), strict=True)) <= 3


def test_pictures_of_a_canvas_keep_their_shape(world):
    lines, _ = written(world, builder(world, 400, "paste", columns=1, rows=1, text=False), 6)
    for row in lines:
        what = int(row["conversations"][1]["value"].split()[-1])
        width, height = Image.open(world.folder / "image" / f"{what}.png").size
        canvas = Image.open(world.folder / "out" / row["image"][row["metadata"]["asked"][0]["image"] - 1])
        inside = sum(sum(canvas.getpixel((x, 14))) > 60 for x in range(28))
        assert abs(inside - 28 * min(1, width / height)) <= 2


def test_every_question_is_asked_before_any_is_asked_again(world):
    made = builder(world, 700)
    asked = [made.build(number).lines[TRAINING_LINES]["metadata"]["asked"][0]["source"] for number in range(2 * IMAGES)]
    assert len(set(asked[:IMAGES])) == len(set(asked[IMAGES:])) == IMAGES and asked[:IMAGES] != asked[IMAGES:]
    places = [made.build(number).depths[0] for number in range(IMAGES)]
    assert min(places) < 0.3 and max(places) > 0.7


def test_a_sample_depends_on_seed_and_number_alone(world):
    made = builder(world, "300:500")
    backwards = [builder(world, "300:500").build(number) for number in reversed(range(6))]
    assert [made.build(number) for number in range(6)] == backwards[::-1]
    assert builder(world, "300:500", seed=2).build(0) != made.build(0)


def test_images_are_shown_again_only_when_asked_to(world):
    with pytest.raises(DataError, match=r"sample 0, 3000 tokens: .*all.jsonl: its 24 images give \d+ of \d+ tokens"):
        builder(world, 3000).build(0)
    built = builder(world, 3000, reuse_images=True).build(0)
    paths = [image.path for image in built.images]
    [asked] = built.lines[TRAINING_LINES]["metadata"]["asked"]
    assert built.tokens == 3000 and len(set(paths)) == IMAGES < len(paths)
    assert paths.count(paths[asked["image"] - 1]) == 1
    with pytest.raises(DataError, match=r"\d+ images are needed on \d+ canvases of up to 2x2, it has 24"):
        builder(world, 3000, "paste").build(0)


def test_images_begin_again_while_any_is_left(world):
    pool = world.pool
    gone = {*pool.images[2:], *(f"other{number}" for number in range(IMAGES))}
    again = list(islice(pool.shuffled(Draws(1, 0), gone, True), 6))
    assert sorted(again) == sorted(pool.images[:2] * 3)
    assert sorted(pool.shuffled(Draws(1, 0), gone, False)) == sorted(pool.images[:2])
    assert not list(pool.shuffled(Draws(1, 0), set(pool.images), True))


def test_a_target_below_what_is_asked_about(world):
    with pytest.raises(
        DataError, match=r"sample 0, 150 tokens: questions, .* images asked about alone take \d+ tokens"
    ):
        builder(world, 150, questions=3).build(0)
    with pytest.raises(DataError, match=r"have room for 0 pictures, 3 are asked about"):
        builder(world, 150, "paste", questions=3).build(0)


def test_too_little_text(world, tmp_path):
    (tmp_path / "text.txt").write_text("a red square")
    with pytest.raises(DataError, match=r"text.txt: \d+ tokens of text, \d+ are needed"):
        for number in range(20):
            builder(world, 400 + number).build(number)


def test_lines_without_a_question_about_one_image_are_counted(world):
    pool = world.pool
    assert len(pool) == IMAGES and len(pool.images) == IMAGES
    causes = {"a list of images": 1, "text only": 1, "video": 1, "spells a special token or a placeholder": 1}
    assert pool.left_out == causes
    with pytest.raises(ConfigError, match="a sample takes 25 questions about a single image each; found are .*: 24 "):
        builder(world, 500, questions=25)


def test_a_question_before_its_image_is_none_about_it(world, tmp_path):
    """The image comes in a later turn, or there is a system turn the sample would lose."""
    talk = [{"from": role, "value": value} for role, value in (("human", "hello"), ("gpt", "hi"))]
    later = [*talk, {"from": "human", "value": "<image>\nq"}, talk[1]]
    rows = [{"image": "0.png", "conversations": later}, {"image": "0.png", "system": "s", "conversations": talk}]
    (tmp_path / "later.jsonl").write_text("\n".join([*map(json.dumps, rows), line("<image>\nq", "a", image="1.png")]))
    pool = ImagePool([Dataset("later", str(tmp_path / "later.jsonl"), f"{tmp_path}/image/")], world.encoding)
    assert len(pool) == 1 and pool.left_out == {"the image comes in a later turn": 1, "a system turn": 1}


def test_several_questions_about_one_image_show_it_once(world, tmp_path):
    rows = [line(f"<image>\nq{i}", f"a{i}", image="0.png") for i in range(2)]
    rows += [line("<image>\nq2", "a2", image=f"{i}.png") for i in range(1, IMAGES)]
    (tmp_path / "same.jsonl").write_text("\n".join(rows))
    pool = ImagePool([Dataset("same", str(tmp_path / "same.jsonl"), f"{tmp_path}/image/")], world.encoding)
    built = builder(world, 2300, pools=[pool], questions=IMAGES + 1).build(0)
    paths = [image.path for image in built.images]
    assert len(set(paths)) == len(paths) == IMAGES and built.tokens == 2300


def test_an_unreadable_image_is_named(world):
    (world.folder / "image" / "3.png").write_text("no image")
    with pytest.raises(DataError, match=r"sample \d+, 700 tokens: .*3.png: not an image \(8 bytes\)"):
        for number in range(IMAGES):
            builder(world, 700).build(number)


def test_a_line_that_is_no_sample_is_named(world, tmp_path):
    (tmp_path / "all.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"all.jsonl:1 \(all\): field 'conversations'"):
        builder(world, 700)


def test_a_million_tokens_from_sizes_alone(world, tmp_path, monkeypatch):
    rows = [line(f"<image>\nwhat is {i}", f"it is {i}", image=f"{i}.png") for i in range(2000)]
    (tmp_path / "all.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(image_pool, "image_size", lambda path: (28 * (1 + int(path[-5]) % 4), 28))
    built = builder(world, 1_000_000, reuse_images=True).build(0)
    assert built.tokens == 1_000_000 and len(built.images) > 30_000
