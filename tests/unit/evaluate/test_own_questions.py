"""A file of one's own questions stands beside the published benchmarks."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.data.conversation import BEGUN
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark_names import create, expand
from megatron_v2pe.evaluate.runner import _check_questions
from megatron_v2pe.evaluate.scorer_names import scorer_of


def written(folder, *rows, name="mine.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_questions_are_read_scored_and_named(tmp_path):
    """Images lie beside the file, several answers may be right, further fields stay with the question."""
    word = written(
        tmp_path,
        {"id": "a", "question": "<image>\nWhich?", "images": ["x/1.png"], "answer": ["Red", "crimson"], "depth": 0.5},
        {"question": "And now?", "answer": "blue", "max_new_tokens": 3},
    )
    (name,) = expand([word])
    benchmark = create(name)
    assert (benchmark.name, benchmark.title) == ("mine", "mine")
    first, second = benchmark.questions(tmp_path)
    assert first.images[0].path == str(tmp_path / "x" / "1.png") and first.facts["depth"] == 0.5
    assert (second.id, second.max_new_tokens, second.images) == ("2", 3, ())
    scorer = scorer_of(benchmark.scorer)
    for question, answer, right in ((first, " Crimson. ", 1.0), (first, "green", 0.0), (second, "Blue", 1.0)):
        assert scorer.score(benchmark.item(question, answer), "corrected") == right


def test_an_answer_may_be_begun(tmp_path):
    """The words go to the model behind the question; other words are another question."""
    lines = [{"question": "Which?", "answer": "7", **more} for more in ({}, {"answer_begins": "The digit is"})]
    plain, begun = create(written(tmp_path, *lines)).questions(tmp_path)
    assert begun.turns == (*plain.turns, (BEGUN, "The digit is")) and begun.facts == plain.facts


def test_files_stand_beside_benchmarks(tmp_path):
    """Names, groups and files are mixed; two that would share a folder are refused."""
    (tmp_path / "b").mkdir()
    one, other = written(tmp_path, name="one.jsonl"), written(tmp_path / "b", name="one.jsonl")
    assert expand([f"pope,{one}"]) == ["pope", one]
    with pytest.raises(ConfigError, match="share the folder one/"):
        expand([one, other])
    with pytest.raises(ConfigError, match="share the folder pope/"):
        expand(["pope", written(tmp_path, name="pope.jsonl")])
    with pytest.raises(ConfigError, match="needs a name"):
        create(".jsonl")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "<image> Which?", "answer": "a"}, "1 <image> in the text, but 0 images"),
        ({"question": "Which?"}, "answer"),
        ({"question": "Which?", "answer": "a", "answer_begins": " "}, "answer_begins is empty"),
        ({"question": "Which?", "answer": "a", "answer_begins": 7}, "answer_begins"),
        ({"question": "Which?", "answer": "a", "images": [5]}, "expected a path or a list of paths"),
        ({"question": "Which?", "answer": []}, "a list of texts"),
        ({"question": "Which?", "answer": ["a", None]}, "a list of texts"),
        ({"question": "Which?", "answer": "a", "max_new_tokens": 0}, "expected between 1 and"),
        ({"question": "Which?", "answer": "a", "max_new_tokens": True}, "expected a number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, words):
    benchmark = create(written(tmp_path, {"question": "Fine?", "answer": "yes"}, row))
    with pytest.raises(DataError, match=r"mine.jsonl:2") as caught:
        list(benchmark.questions(tmp_path))
    assert words in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="data are missing"):
        create("nowhere.jsonl").check(tmp_path)


def test_answers_to_other_questions_are_refused(tmp_path):
    """A line put before the others gives their numbers to other questions."""
    out, before = tmp_path / "out", [{"question": f"<image>\nWhich {n}?", "answer": "a", "images": ["x"]} for n in "ab"]
    questions = list(create(written(tmp_path, *before)).questions(tmp_path))
    log = AnswerLog(out, 0)
    for question in questions:
        log.add(Answer(question.id, "a", "human: <image of 3 tiles>" + question.turns[0][1][7:], 9, 3, 1, 0.1, "stop"))
    log.close()
    _check_questions(AnswerLog(out), questions, out)
    changed = list(create(written(tmp_path, {"question": "New?", "answer": "b"}, *before)).questions(tmp_path))
    with pytest.raises(DataError, match="the answer to 1 belongs to another question: .*Which a.* then, .*New.* now"):
        _check_questions(AnswerLog(out), changed, out)
