"""Long-MR: exact lengths, needles where they are said to be, answers that hold, and the fields of MM-NIAH."""

from __future__ import annotations

import json
import re

import pytest
from long_context_world import write_text
from PIL import Image, ImageChops

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.workshop.long_context import image_pool, text_needles
from megatron_v2pe.workshop.long_context.built import TRAINING_LINES
from megatron_v2pe.workshop.long_context.draws import TokenRange
from megatron_v2pe.workshop.long_context.image_needles import NeedleImages, needed
from megatron_v2pe.workshop.long_context.image_pool import folder_images
from megatron_v2pe.workshop.long_context.long_mr import LongMrBuilder, LongMrSettings
from megatron_v2pe.workshop.long_context.needles import IMAGE_TASKS, TASKS, TEXT_TASKS
from megatron_v2pe.workshop.long_context.text_source import TextSource
from megatron_v2pe.workshop.long_context.write import write_data_set


def builder(world, target=1500, tasks=TASKS, seed=1, pool=True, text=None, **settings):
    settings = LongMrSettings(seed, TokenRange.parse(str(target)), tuple(tasks), **{"reuse_images": True, **settings})
    folder = world.folder / "needles"
    pictures = NeedleImages.measure(folder_images(folder), world.encoding.tile_size, needed(tasks), folder)
    source = TextSource([text], world.encoding) if text else world.text
    return LongMrBuilder(world.pool if pool else None, world.budget, settings, source, pictures)


def evaluation(built):
    [line] = [line for file, line in built.lines.items() if file != TRAINING_LINES]
    return line


def depths(meta):
    placed = meta["placed_depth"]
    return placed if isinstance(placed, list) else [placed]


def tokens_before(world, line, place):
    """Share of the context's tokens before a character, counted from nothing but text and image sizes."""
    encoding = world.encoding
    costs = []
    for path in line["images_list"]:
        costs.append(encoding.tiles(Image.open(world.folder / "out" / path).size) * encoding.tokens_per_tile + 2)

    def count(text):
        parts = text.split("<image>")
        return sum(len(encoding.encode(part)) for part in parts) + sum(costs[: len(parts) - 1])

    return count(line["context"][:place]) / count(line["context"])


@pytest.fixture
def written(world):
    def write(made, samples):
        folder = world.folder / "out"
        folder.mkdir()
        write_data_set(made, samples, folder, folder, "out")
        training = [json.loads(text) for text in (folder / TRAINING_LINES).read_text().splitlines()]
        tasks = {path.stem: path.read_text().splitlines() for path in (folder / "mm_niah").iterdir()}
        return training, {task: [json.loads(text) for text in lines] for task, lines in tasks.items()}

    return write


def test_every_sample_has_exactly_its_target_and_both_forms_agree(world, written):
    training, tasks = written(builder(world, "1200:1600"), 3 * len(TASKS))
    lengths = world.lengths(world.folder / "out" / "meta.json")
    assert set(tasks) == set(TASKS) and len(set(lengths)) > 10
    for number, (row, length) in enumerate(zip(training, lengths, strict=True)):
        meta, task = row["meta"], TASKS[number % len(TASKS)]
        assert length == meta["context_length"] == meta["context_length_text"] + meta["context_length_image"]
        assert 1200 <= length <= 1600
        line = tasks[task][number // len(TASKS)]
        assert line["id"] == number // len(TASKS) and row["id"] == f"{task}_{line['id']}" and line["meta"] == meta
        assert set(line) == {"id", "images_list", "context", "question", "answer", "meta"}
        assert row["conversations"][0]["value"] == prompt(line)
        assert row["image"] == line["images_list"] + (meta["choices_image_path"] or [])
        assert len(line["images_list"]) == (line["context"] + line["question"]).count("<image>")
        answer = row["conversations"][1]["value"]
        if isinstance(line["answer"], list):
            assert json.loads(answer) == line["answer"]
        else:
            assert answer == ("ABCD"[line["answer"]] if isinstance(line["answer"], int) else line["answer"])


def prompt(line):
    """The prompt of the published evaluation."""
    text, choices = line["context"] + line["question"], line["meta"]["choices"]
    if line["meta"]["choices_image_path"]:
        choices = ["<image>"] * len(line["meta"]["choices_image_path"])
    if choices:
        text += "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=False))
        return text + "\nAnswer with the option's letter from the given choices directly."
    if isinstance(line["answer"], list):
        return text
    return text + "\nAnswer the question using a single word or phrase."


def test_needles_in_text_stand_where_they_are_said_to(world, written):
    _, tasks = written(builder(world, tasks=TEXT_TASKS), 16)
    for lines in tasks.values():
        for line in lines:
            needles = line["meta"]["needles"]
            places = [line["context"].index(needle) for needle in needles]
            assert places == sorted(places) and all(line["context"].count(needle) == 1 for needle in needles)
            for place, depth in zip(places, depths(line["meta"]), strict=True):
                assert tokens_before(world, line, place) == pytest.approx(depth, abs=2e-3)
            if isinstance(line["answer"], str):
                assert line["context"].count(line["answer"]) == 1
            assert all(fake in line["context"] for fake in line["meta"]["fake_needles"])
            assert bool(line["meta"]["fake_needles"]) == (line["meta"]["category"] == "text_retrieval_fake")


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_a_needle_is_within_a_paragraph_of_its_depth(world, depth):
    made = builder(world, 4000, ["text_retrieval"], depths=(depth,))
    for number in range(4):
        line = evaluation(made.build(number))
        longest = max(len(world.encoding.encode(text)) for text in line["context"].split("\n"))
        needle = len(world.encoding.encode(line["meta"]["needles"][0]))
        assert abs(line["meta"]["placed_depth"] - depth) <= (longest + needle) / 4000


def test_depths_come_in_turn_for_every_task(world):
    made = builder(world, 3000, ["text_retrieval", "text_retrieval_fake"], depths=(0.1, 0.9))
    placed = [made.build(number).depths[0] for number in range(8)]
    assert [round(depth - 0.5) >= 0 and depth > 0.5 for depth in placed] == [False, False, True, True] * 2


def test_drawn_depths_reach_everywhere(world):
    made = builder(world, 2000, ["text_retrieval"], image_share=0.2)
    placed = [made.build(number).depths[0] for number in range(60)]
    assert all(sum(low <= depth < low + 0.25 for depth in placed) >= 6 for low in (0, 0.25, 0.5, 0.75))


def test_images_take_their_share(world):
    for share in (0.0, 0.3, 0.8):
        built = builder(world, 2000, ["text_retrieval"], image_share=share).build(0)
        meta = evaluation(built)["meta"]
        # The haystack has nine tenths of a sample; marks and newlines of images of 4 to 28 tokens are counted as text.
        assert 0.7 * share <= meta["context_length_image"] / 2000 <= share
        assert meta["num_images"] == len(built.images) and (meta["num_images"] == 0) == (share == 0)


def test_images_alone_leave_a_line_of_text_to_fill(world):
    made = builder(world, "1000:1400", ["text_counting", "image_retrieval"], image_share=1.0)
    for number in range(20):
        built = made.build(number)
        assert built.tokens == built.target


def test_text_alone_needs_no_images(world, written):
    [row], _ = written(builder(world, 900, ["text_retrieval"], pool=False, image_share=0), 1)
    assert "image" not in row and world.lengths(world.folder / "out" / "meta.json") == [900]


def changed(world, path):
    """Images of the world that differ from `path` in less than a third of their pixels, and that part."""
    shown = Image.open(world.folder / "out" / path)
    found = []
    for original in (world.folder / "image").iterdir():
        base = Image.open(original)
        if base.size == shown.size:
            mask = ImageChops.difference(base, shown).convert("L").point(lambda value: 255 * (value > 40))
            found.append((mask.histogram()[255] / (base.width * base.height), original))
    return min(found)


def test_a_picture_is_pasted_into_the_image_at_its_depth(world, written):
    _, tasks = written(builder(world, tasks=["image_retrieval", "image_counting"]), 8)
    for line in tasks["image_retrieval"] + tasks["image_counting"]:
        hosts = [path for path in line["images_list"] if "_host" in path]
        assert len(hosts) == len(depths(line["meta"]))
        for host, depth in zip(hosts, depths(line["meta"]), strict=True):
            number = line["images_list"].index(host)
            place = [match.start() for match in re.finditer("<image>", line["context"])][number]
            assert tokens_before(world, line, place) == pytest.approx(depth, abs=2e-3)
            part, _ = changed(world, host)
            assert 0.02 < part < 0.5
        if line["meta"]["category"] == "image_retrieval":
            [needle] = line["meta"]["needles"]
            assert line["meta"]["choices_image_path"][line["answer"]] == needle
            assert len(set(line["meta"]["choices_image_path"])) == 4
        else:
            parts = [changed(world, host)[0] for host in hosts]
            assert len(line["answer"]) == len(hosts) and all(1 <= copies <= 4 for copies in line["answer"])
            one = [part / copies for part, copies in zip(parts, line["answer"], strict=True)]
            assert all(0.02 < part < 0.13 for part in one), (parts, line["answer"])


def test_the_missing_piece_is_among_the_choices(world, written):
    _, tasks = written(builder(world, tasks=["image_reasoning_jigsaw"]), 6)
    answers = set()
    for line in tasks["image_reasoning_jigsaw"]:
        puzzle = Image.open(world.folder / "out" / line["meta"]["needles"][0])
        assert line["meta"]["needles"][0] in line["images_list"]
        assert sum(puzzle.getpixel((puzzle.width - 4, puzzle.height - 4))) < 30
        pieces = [Image.open(world.folder / "out" / path) for path in line["meta"]["choices_image_path"]]
        # The upper left of needle picture k is (255, 0, 10 k), its lower right (0, 250 - 10 k, 0).
        which = round(puzzle.getpixel((3, 3))[2] / 10)
        greens = [piece.getpixel((piece.width // 2, piece.height // 2))[1] for piece in pieces]
        assert [abs(green - (250 - 10 * which)) <= 4 for green in greens].index(True) == line["answer"]
        answers.add(line["answer"])
    assert len(answers) > 1


def test_the_camera_moves_as_the_answer_says(world, written):
    _, tasks = written(builder(world, tasks=["image_reasoning_multiview"]), 8)
    answers = set()
    for line in tasks["image_reasoning_multiview"]:
        first, second = (Image.open(world.folder / "out" / path) for path in line["meta"]["needles"])
        assert line["meta"]["choices"] == ["left", "right"] and first.size == second.size
        # Green fills the picture from x = 20 on: a window further right shows more of it.
        green = [
            sum(view.getpixel((x, view.height - 3))[1] > 120 for x in range(view.width)) for view in (first, second)
        ]
        assert (green[1] > green[0]) == (line["answer"] == 1)
        shown = [line["images_list"].index(path) for path in line["meta"]["needles"]]
        assert shown == sorted(shown)
        answers.add(line["answer"])
    assert answers == {0, 1}


def test_hidden_pictures_are_not_shown_by_themselves(world):
    for path in (world.folder / "needles").iterdir():
        path.unlink()
    for number in range(24):
        (world.folder / "needles" / f"{number}.png").symlink_to(world.folder / "image" / f"{number}.png")
    made = builder(world, tasks=IMAGE_TASKS, seed=3)
    folder = world.folder / "image"
    made._needle_images = NeedleImages.measure(folder_images(folder), 28, 4, folder)
    for number in range(12):
        built = made.build(number)
        paths = [image.path for image in built.images]
        hidden = {image.recipe.needle.source for image in built.images if hasattr(image.recipe, "needle")}
        hidden |= {image.recipe.source for image in built.images if hasattr(image.recipe, "hole")}
        assert hidden and not hidden & set(paths)


def test_fakes_may_be_added_to_other_text_tasks(world):
    made = builder(world, 2000, ["text_counting", "text_reasoning"], fakes_everywhere=2)
    for number in range(4):
        line = evaluation(made.build(number))
        assert len(line["meta"]["fake_needles"]) == 2
        assert all(fake in line["context"] for fake in line["meta"]["fake_needles"])


def test_a_haystack_that_holds_a_word_of_a_needle_gets_another(world, monkeypatch):
    made = builder(world, 900, ["text_retrieval"])
    first = evaluation(made.build(0))
    name = re.findall(r"[A-Z][a-z]{5,}", first["meta"]["needles"][0])[-1]
    text = world.folder / "text.txt"
    text.write_text(text.read_text().replace(" square", f" {name.lower()}"))
    again = evaluation(builder(world, 900, ["text_retrieval"]).build(0))
    assert name.lower() not in again["meta"]["needles"][0].lower()
    monkeypatch.setattr(text_needles._Words, "name", lambda self: self.used.append("red") or "Red")
    with pytest.raises(DataError, match="the text held a word of 20 needles in turn"):
        builder(world, 900, ["text_reasoning"]).build(0)


def test_a_sample_depends_on_seed_and_number_alone(world):
    made = builder(world, "1200:1600")
    backwards = [builder(world, "1200:1600").build(number) for number in reversed(range(len(TASKS)))]
    assert [made.build(number) for number in range(len(TASKS))] == backwards[::-1]
    assert builder(world, "1200:1600", seed=2).build(0) != made.build(0)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (
            150,
            {"tasks": ["text_counting"]},
            r"sample 0 \(text_counting\), 150 tokens: question, .* alone take \d+ tokens",
        ),
        (60_000, {"tasks": ["text_retrieval"]}, r"text.txt: \d+ tokens of text, \d+ are needed"),
        (3000, {"tasks": ["text_retrieval"], "reuse_images": False}, r"its 24 images give \d+ of \d+ tokens"),
        (
            520,
            {"tasks": ["image_counting"], "image_share": 0.02},
            r"pasted into \d images of 14 pixels or more; 0 of 24",
        ),
    ],
)
def test_what_cannot_be_made(world, target, settings, message):
    with pytest.raises(DataError, match=message):
        builder(world, target, **settings).build(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["text_poetry"]}, "--tasks text_poetry: expected some of text_retrieval"),
        ({"tasks": []}, "--tasks"),
        ({"image_share": 1.5}, "--image-share 1.5: expected 0 to 1"),
        ({"depths": (0.5, 2.0)}, "--depths 2.0: expected 0 to 1"),
        ({"fakes": -1}, "fake needles -1, 0"),
        ({"pool": False, "tasks": ["text_retrieval"]}, "no image in any annotation"),
        ({"tasks": ["image_counting"], "image_share": 0.0}, "image_counting: --image-share 0 leaves no image"),
    ],
)
def test_settings_that_cannot_be(world, settings, message):
    with pytest.raises(ConfigError, match=message):
        builder(world, **settings)


def test_too_few_pictures_to_hide(world):
    for number in range(2):
        (world.folder / "needles" / f"{number}.png").unlink()
    with pytest.raises(ConfigError, match=r"needles: 3 different images of 8 pixels or more, the tasks take 4"):
        builder(world)
    assert builder(world, tasks=["image_counting"]).build(0)
    with pytest.raises(ConfigError, match="gone: no such folder of images"):
        folder_images(world.folder / "gone")


def test_a_million_tokens_from_sizes_alone(world, monkeypatch):
    text = world.folder / "long.txt"
    write_text(text, 6000)
    monkeypatch.setattr(image_pool, "image_size", lambda path: (112, 28))
    built = builder(world, 1_000_000, ["image_counting"], image_share=0.9, text=text).build(0)
    assert built.tokens == 1_000_000 and len(built.images) > 30_000
