"""Questions of `generate.py --input`: media and turns under the names of training data, or refused by line."""

from __future__ import annotations

import json
import logging

import pytest

from megatron_v2pe.errors import DataError
from megatron_v2pe.generate.generation import Generated
from megatron_v2pe.generate.jsonl import _line, read_questions, unanswered


def read(folder, *rows):
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(path)


@pytest.mark.parametrize("name", ["image", "images", "Image", "image_path", "img", "pictures"])
def test_images_are_shown_whatever_their_field_is_called(tmp_path, name):
    one, two = read(tmp_path, {"prompt": "what", name: "x.png"}, {"prompt": "what", name: ["x.png", "y.png"]})
    assert one.images == [str(tmp_path / "x.png")]
    assert two.images == [str(tmp_path / "x.png"), str(tmp_path / "y.png")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a", "image2": "x.png"}, "the field 'image2' looks like media"),
        ({"prompt": "a", "picture_data": {"path": "x"}}, "looks like media"),
        ({"prompt": "a", "file": "x.webp"}, "the field 'file' looks like media"),
        ({"prompt": "a", "video": "v.mp4"}, "video: no video is shown here; give frames of it"),
        ({"prompt": "a", "images": ["http://h/x.png"]}, "http://h/x.png: nothing is fetched from an address"),
        ({"prompt": "a", "image": "data:image/png;base64,x"}, "image: holds a picture itself"),
        ({"prompt": "a", "image": "x", "images": ["y"]}, "image and images name different files"),
        ({"prompt": "a", "conversations": [{"from": "human", "value": "b"}]}, "prompt and conversations: a question"),
        ({"instruction": "a"}, "neither prompt nor conversations; 'instruction' not read: give the question as 'p"),
        ({"question": "a", "query": "b"}, "question and query both stand here and differ"),
        ({"question": 7}, "question: found 7, expected text"),
        ({"question": "a", "context": ["b"]}, "context: found a list, expected text"),
        ({"question": " ", "context": "b"}, "the prompt is empty"),
        ({"question": "a", "meta": {"choices": ["b", "c"]}}, "choices of MM-NIAH's form, which are not shown here"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "last turn is an answer"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "write the parts as one text"),
    ],
)
def test_what_would_be_asked_without_its_picture_is_refused_by_line(tmp_path, row, told):
    with pytest.raises(DataError, match=f"in.jsonl:2: .*{told}"):
        read(tmp_path, {"prompt": "first"}, row)


@pytest.mark.parametrize("name", ["prompt", "question", "query", "text"])
def test_what_is_asked_goes_by_the_names_of_own_questions_and_of_other_tools(tmp_path, name, caplog):
    """`question` of the evaluation's own questions, `query` of ms-swift, `text` of LLaVA-Bench."""
    (one,) = read(tmp_path, {name: "what", "image": "x.png", "question_id": 5, "category": "conv"})
    assert (one.turns, one.images) == ([("human", "what")], [str(tmp_path / "x.png")]) and not caplog.records
    assert one.name == "5"
    (one,) = read(tmp_path, {name: "what", "context": "Ann sings."})
    assert one.turns == [("human", "Ann sings.\nwhat")]
    (one,) = read(tmp_path, {"prompt": "what", "question": "what", "text": "a title"})
    assert one.turns == [("human", "what")]


def test_system_prompts_and_turns_under_other_names(tmp_path):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    rows = read(tmp_path, {"prompt": "a", "system": "s"}, {"messages": talk}, {"prompt": "a", "system": None})
    assert [list(row.turns) for row in rows] == [[("system", "s"), ("human", "a")]] * 2 + [[("human", "a")]]


def test_fields_that_are_not_read_are_named_once(tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("megatron_v2pe")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        read(tmp_path, {"prompt": "a", "topic": "x", "id": 1}, {"prompt": "b", "topic": "y", "answer": "z"})
    (said,) = {record.getMessage() for record in caplog.records}
    assert said.endswith("in.jsonl: fields that are not read: 'topic' (2), 'answer' (1)")


def test_an_answer_to_another_question_is_noticed(tmp_path):
    """A question edited between stop and resume, and one that has another's number since a line was put before it."""
    rows = [{"prompt": "one", "image": "x.png"}, {"prompt": "two"}, {"prompt": "three"}]
    output = tmp_path / "out.jsonl"
    answer = Generated([1, 2], "stop_token", "a")
    output.write_text("".join(_line(question, answer) for question in read(tmp_path, *rows)[:2]))
    assert [one.name for one in unanswered(read(tmp_path, *rows), output)] == ["3"]
    assert [one.name for one in unanswered(read(tmp_path, *rows, {"prompt": "four"}), output)] == ["3", "4"]
    for edited in (
        [{"prompt": "One", "image": "x.png"}, *rows[1:]],
        [{"prompt": "one", "image": "y.png"}, *rows[1:]],
        [{"prompt": "zero"}, *rows],
        [{**rows[0], "system": "Be brief."}, *rows[1:]],
    ):
        with pytest.raises(DataError, match="out.jsonl: what it answers as '1' is not what is asked now.*--output"):
            unanswered(read(tmp_path, *edited), output)
    old = {"id": "1", "answer": "a", "finish_reason": "stop_token", "num_tokens": 7}
    output.write_text(json.dumps(old) + "\n")
    assert [one.name for one in unanswered(read(tmp_path, *rows), output)] == ["2", "3"], "of an older version"
