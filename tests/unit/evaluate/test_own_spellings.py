"""Own questions as people write them: every spelling of a picture is shown, or refused; none is asked without it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark_names import create, expand
from megatron_v2pe.evaluate.scorer_names import scorer_of


def read(folder, *rows, name="mine.jsonl"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    benchmark = create(str(path))
    return benchmark, list(benchmark.questions(folder))


@pytest.mark.parametrize(
    "field", ["image", "images", "image_path", "images_list", "Image", "img", "picture", "image_file", "imagePath"]
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_picture_is_shown_under_every_usual_name(tmp_path, field, listed):
    for question in ("Which?", "<image>\nWhich?"):
        row = {"question": question, "answer": "a", field: ["1.png"] if listed else "1.png"}
        _, (asked,) = read(tmp_path, row)
        assert [image.path for image in asked.images] == [str(tmp_path / "1.png")]
        assert asked.turns == (("human", "<image>\nWhich?"),)


@pytest.mark.parametrize(
    "row",
    [
        {"left_image": "1.png"},
        {"image2": "1.png", "image": "2.png"},
        {"video": "1.mp4"},
        {"videos": ["1.mp4"]},
        {"frames": ["1.png", "2.png"]},
        {"audio": "1.wav"},
        {"file": "1.jpg"},
        {"meta": {"picture": "1.jpg"}},
        {"image": {"path": "1.png"}},
        {"image": "data:image/png;base64,iVBORw0KGgo"},
    ],
)
def test_a_picture_that_is_not_read_is_an_error(tmp_path, row):
    with pytest.raises(DataError, match=r"mine.jsonl:1: "):
        read(tmp_path, {"question": "Which?", "answer": "a", **row})


def test_several_pictures_without_places_get_lines_of_their_own(tmp_path):
    _, (asked,) = read(tmp_path, {"question": "Same?", "answer": "no", "images": ["1.png", "2.png"]})
    assert asked.turns == (("human", "Image-1: <image>\nImage-2: <image>\nSame?"),)
    with pytest.raises(DataError, match="1 <image> in the text, but 2 images: write <image> once for each"):
        read(tmp_path, {"question": "<image> Same?", "answer": "no", "images": ["1.png", "2.png"]})


def test_pictures_lie_beside_the_file_or_below_the_root(tmp_path):
    """As in the files of published evaluations, whose paths are relative to where they are started."""
    (tmp_path / "data").mkdir()
    for name in ("data/1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = [{"question": "?", "answer": "a", "image": name, "id": name} for name in ("1.png", "2.png", "data/1.png")]
    _, asked = read(tmp_path, *rows, name="data/mine.jsonl")
    found = [tmp_path / "data" / "1.png", tmp_path / "2.png", tmp_path / "data" / "1.png"]
    assert [one.images[0].path for one in asked] == list(map(str, found))


def test_context_prompt_answers_and_numbers_are_read(tmp_path):
    rows = [
        {"question": "Who?", "context": "Ann sings.", "answer": "Ann"},
        {"prompt": "How many?", "answers": [7, "seven"], "question_id": "x"},
    ]
    benchmark, (first, second) = read(tmp_path, *rows)
    assert first.turns == (("human", "Ann sings.\nWho?"),)
    assert (second.id, second.facts["answers"]) == ("x", ["7", "seven"])
    assert scorer_of(str(benchmark.scorer)).score(benchmark.item(second, "7."), "corrected") == 1.0


def test_fields_that_nobody_reads_are_kept_and_named_once(tmp_path, caplog):
    _, asked = read(tmp_path, *({"question": f"{n}?", "answer": "a", "topics": ["a", "b"], "id": n} for n in "pq"))
    assert asked[0].facts["topics"] == ["a", "b"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "mine: fields that are kept and not read: topics (2 lines)"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": [{"from": "human", "value": "?"}], "image": "a.png"}, "a line of a training annotation"),
        ({"messages": [{"role": "user", "content": "?"}]}, "a line of a training annotation"),
        ({"Question": "?", "answer": "a"}, "no 'question', only 'Question', 'answer'. A line of own questions is {"),
        ({"question": "?"}, "no 'answer', only 'question'"),
        ({"question": "?", "prompt": "!", "answer": "a"}, "'question' and 'prompt' both stand here and differ"),
        ({"question": "?", "answer": True}, "expected text, or a list of texts"),
        ({"question": " ", "answer": "a"}, "expected text"),
    ],
)
def test_other_lines_are_told_for_what_they_are(tmp_path, row, words):
    with pytest.raises(DataError) as caught:
        read(tmp_path, row)
    assert words in str(caught.value) and "published evaluation" not in str(caught.value)


def test_a_file_is_not_taken_for_a_benchmark(tmp_path):
    (tmp_path / "pope.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="kept as those of the benchmark pope"):
        expand([str(tmp_path / "pope.jsonl")])
    with pytest.raises(ConfigError, match=r"a folder; name its files of questions, .*/\*.jsonl"):
        expand([str(tmp_path)])
    for word in ("questions.json", "data/questions", "mine.csv"):
        with pytest.raises(ConfigError, match="whose name ends in .jsonl"):
            expand([word])
    with pytest.raises(DataError, match="holds no question"):
        read(tmp_path)


NEEDLE = {
    "id": 3,
    "context": "Once <image> upon a time.",
    "question": "Which?",
    "answer": "Ann",
    "images_list": ["images/1.png"],
    "meta": {"placed_depth": 0.5, "context_length": 2000, "choices": None, "choices_image_path": None},
}


@pytest.mark.parametrize("folder", ["mm_niah", "annotations", ""], ids=["our builder", "MM-NIAH", "beside"])
def test_files_of_mm_niah_are_asked_and_scored_as_mm_niah(tmp_path, folder):
    """Those `build_long_context.py` writes, and a download's own; their images lie in other places."""
    image = {"mm_niah": "images/1.png", "annotations": "images/images/1.png", "": "images/1.png"}[folder]
    (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(tmp_path / image)
    meta = {**NEEDLE["meta"], "context_length": 9000, "choices_image_path": ["images/1.png"] * 2}
    rows = [NEEDLE, {**NEEDLE, "id": 4, "answer": 1, "meta": meta}]
    benchmark, (longest, other) = read(tmp_path, *rows, name=f"{folder}/image_retrieval.jsonl".lstrip("/"))
    assert [(one.id, len(one.images)) for one in (longest, other)] == [("4", 3), ("3", 1)]
    assert {one.path for one in longest.images} == {str(tmp_path / image)}
    assert other.turns[0][1].startswith("Once <image> upon a time.Which?\nAnswer the question using a single")
    assert "A. <image>\nB. <image>\n" in longest.turns[0][1]
    assert (benchmark.scorer, benchmark.max_tiles, benchmark.thumbnail) == ("mm_niah", 5, True)
    assert (other.max_new_tokens, other.facts["task"]) == (16, "retrieval-image-test")
    scorer = scorer_of("mm_niah")
    assert scorer.score(benchmark.item(longest, "(B)"), "corrected") == 1.0
    assert scorer.score(benchmark.item(other, "It was Ann."), "corrected") == 1.0


def test_counts_have_room_and_forms_are_not_mixed(tmp_path):
    _, (counting,) = read(tmp_path, {**NEEDLE, "answer": [1, 2]}, name="text_counting.jsonl")
    assert counting.max_new_tokens == 320 and counting.facts["task"] == "counting-text-test"
    plain = {"question": "Which?", "answer": "a"}
    for rows in ((NEEDLE, plain), (plain, NEEDLE)):
        with pytest.raises(DataError, match="mine.jsonl:2: .*a file of its own"):
            read(tmp_path, *rows)
    part = {**NEEDLE, "meta": {"choices": ["a", "b"]}}  # its choices would not be shown were it taken for another form
    with pytest.raises(DataError, match="mine.jsonl:1: meta: no 'placed_depth', 'context_length': a line of MM-NIAH"):
        read(tmp_path, part)
    with pytest.raises(DataError, match="mine.jsonl:1: no 'answer'") as caught:
        read(tmp_path, {name: value for name, value in NEEDLE.items() if name != "answer"})
    assert "another version" not in str(caught.value)
