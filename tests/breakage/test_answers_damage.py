"""Damaged answers, results, notes and `run.json`: the same outcome as before, or one error that names the file.

Each file is flipped, cut and emptied at seeded places, and a table gives single fields wrong values. `outcome` is all a
user sees: which answers count, the score, the report's number. Nothing may change in silence, nothing may end in a
traceback.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_v2pe.errors import ConfigError, DataError, V2PEError
from megatron_v2pe.evaluate import provenance
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.crash_notes import AskingNote, ended_runs
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.evaluate.report.runs import open_runs
from megatron_v2pe.evaluate.report.scoring import score_runs
from megatron_v2pe.evaluate.results import as_line, score
from megatron_v2pe.foreign.seal import seal
from megatron_v2pe.generate.jsonl import answered
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")

NAME = "chartqa_human"
SETTINGS = {
    "checkpoint": "c0ffee" * 8,
    "rope_pos_id_version": "v2pe_fix",
    "rope_pos_id_stride": "64",
    "mode": "corrected",
}
FLIPS = 80
"""Of each file."""
WRONG: tuple[Any, ...] = (None, True, -1, 1.5, 10**400, 1e308, "", "x", "\x1b[2J", [], [1], {}, {"a": []}, 5000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_benchmark(folder, NAME, questions=5)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of five questions, one failed, and a second evaluation that was killed over one."""
    folder = tmp_path_factory.mktemp("whole")
    settle(folder, SETTINGS)
    benchmark = create(NAME)
    questions = list(benchmark.questions(data))
    log = AnswerLog(folder / NAME, 0)
    for number, question in enumerate(questions):
        text, problem = ("yes", None) if number else (None, "DataError: gone")
        log.add(Answer(question.id, text, "human: ?", 9, 1, 2, 0.1, "stop" if text else "error", problem, 7))
    log.close()
    score(benchmark, questions, folder / NAME, data, "corrected")
    AskingNote(folder / NAME, 0, {questions[1].id: 1}).put([questions[2].id])
    return folder


def without_check(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "check"}


def outcome(folder: Path, root: Path) -> Any:
    """What the answers are, what the report says, and what the next evaluation would do."""
    (run,) = open_runs([f"run={folder}"])
    log = AnswerLog(folder / NAME)
    scores = score_runs([run], root, {}), score_runs([run], root / "nowhere", {})  # of answers, of results.json
    settle(folder, SETTINGS)
    return log.answers, log.duplicates, run.settings, scores, ended_runs(folder / NAME)


FILES = ("run.json", f"{NAME}/answers-00000.jsonl", f"{NAME}/results.json", f"{NAME}/asking-00000.json")


@pytest.fixture
def attempt(tmp_path: Path, whole: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    """Return what puts content in a file's place and tells what comes of it: `same`, an error, or `silent`."""
    monkeypatch.setattr(provenance, "code_version", lambda: json.loads((whole / "run.json").read_text())["code"])
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    expected = outcome(copy, data)

    def attempt(name: str, content: bytes) -> str:
        (copy / name).write_bytes(content)
        try:
            return "same" if outcome(copy, data) == expected else "silent"
        except V2PEError as error:
            assert Path(name).name in str(error) and str(copy) in str(error), str(error)
            assert "\x1b" not in str(error) and "\n" not in str(error)
            return "refused"
        finally:
            shutil.copyfile(whole / name, copy / name)

    return attempt


@pytest.mark.parametrize("name", FILES)
def test_flipped(attempt, whole, name):
    draw, content = random.Random(name), (whole / name).read_bytes()
    found = []
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content) - 1)] ^= 1 << draw.randrange(8)
        found.append(attempt(name, bytes(damaged)))
    # White space between fields may become other white space; the torn last line of answers is not reached.
    assert "silent" not in found and found.count("refused") > 0.8 * FLIPS, found


@pytest.mark.parametrize("name", FILES)
def test_cut_and_emptied(attempt, whole, name):
    content = (whole / name).read_bytes()
    draw = random.Random(name)
    for end in (1, *(draw.randrange(1, len(content) - 1) for _ in range(12))):
        found = attempt(name, content[:end])
        torn = name.endswith("jsonl")  # a torn last line is asked again, as after any kill
        assert found == "refused" or torn, (end, found)
    assert attempt(name, b"\xff\xfe\x00" * 9 + b"\n") == "refused"
    assert attempt(name, b"[" * 100_000 + b"\n") == "refused"


@pytest.mark.parametrize("name", FILES)
def test_wrong_types_with_a_right_checksum(attempt, whole, name):
    """A file written by a faulty program: its checksum is right, its values are not."""
    lines = (whole / name).read_text().splitlines() if name.endswith("jsonl") else [(whole / name).read_text()]
    first = without_check(json.loads(lines[0]))
    checked = ("questions", "missing", "failed", "score", "limit", "published", "answered", "mode", "duplicates")
    for field in first if "results" not in name else checked:
        for value in WRONG:
            fitting = type(value) is type(first[field]) or (value is None and field in ("score", "limit", "published"))
            fitting |= field in ("positions", "error", "answer", "published", "mode", "answered") and value is None
            fitting |= isinstance(value, (int, float)) and field in ("seconds", "score") and value is not True
            fitting |= field == "limit" and value in (5000,)
            if not fitting:
                content = json.dumps(seal({**first, field: value}))
                rest = "".join(f"\n{line}" for line in lines[1:])
                assert attempt(name, f"{content}{rest}\n".encode()) == "refused", (field, value)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("score", 5000, "score 5000, expected between 0 and 100"),
        ("score", -1, "found -1, expected 0 or more"),
        ("questions", -1, "found -1, expected 0 or more"),
        ("questions", 4, "are not 4"),
        ("missing", ["a"] * 9, "10 questions are missing or failed, of 5"),
        ("limit", 3, "limit 3, but 5 questions"),
        ("mode", "best", "expected one of"),
    ],
)
def test_results_in_range(whole, data, tmp_path, field, value, told):
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / NAME / "results.json"
    content = {**json.loads(path.read_text()), field: value}
    content.pop("check")  # as an older version, without a checksum
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=told) as caught:
        outcome(tmp_path / "copy", data)
    assert str(path) in str(caught.value) and "give the evaluation's command again" in str(caught.value)
    path.write_text(json.dumps({**content, field: float("nan")}))
    with pytest.raises(DataError, match="NaN is no number"):
        outcome(tmp_path / "copy", data)


def test_answers_without_run_json_are_nobodys(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").unlink()
    with pytest.raises(ConfigError, match="run.json is missing, and nothing else says"):
        settle(tmp_path / "copy", SETTINGS)


def test_lines_of_an_older_version_are_read(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / NAME / "answers-00000.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(without_check(row)) + "\n" for row in rows))
    assert AnswerLog(tmp_path / "copy" / NAME).answers == AnswerLog(whole / NAME).answers


def test_a_planted_break_would_be_seen(attempt, whole, monkeypatch):
    """Without the comparison of checksums the flips above are silent."""
    monkeypatch.setattr("megatron_v2pe.evaluate.answers.unseal", lambda content, *_: without_check(content))
    name = FILES[1]
    damaged = (whole / name).read_bytes().replace(b'"yes"', b'"yet"', 1)
    assert attempt(name, damaged) == "silent"


def test_output_of_generate(tmp_path):
    path = tmp_path / "out.jsonl"
    row = {"id": "1", "answer": "a", "finish_reason": "stop_token", "num_tokens": 7}
    path.write_text(json.dumps(seal(row)) + "\n" + json.dumps({**row, "id": "2"}) + "\n" + '{"id": "3", "ans')
    assert answered(path) == {"1", "2"} and path.read_text().count("\n") == 2  # one of an older version, one torn
    content = path.read_bytes().split(b"\n")[0] + b"\n"
    draw = random.Random(0)
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content) - 1)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert answered(path) == {"1"}
        except DataError as error:
            assert f"{path}:" in str(error) and "remove the line" in str(error)
    for field, value in (("id", 1), ("num_tokens", -1), ("answer", None), ("num_tokens", 10**400)):
        path.write_text(json.dumps(seal({**row, field: value})) + "\n")
        with pytest.raises(DataError, match="out.jsonl:1"):
            answered(path)


def edited_lines(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every line that has an answer, as a person or a script does who leaves the checksums as they are."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row) if row["answer"] else row) + "\n" for row in rows))


def test_answers_edited_by_hand_count_and_are_marked(whole, data, tmp_path, caplog):
    """People try scorers on texts of their own: neither refused as damage, nor scored as if the model had said them."""
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / NAME / "answers-00000.jsonl"
    said = "The correct answer is no. A yes would be wrong."
    edited_lines(path, lambda row: {**row, "answer": said, "stopped": "length"})
    log = AnswerLog(path.parent)
    assert len(log.edited) == 4 and {log.answers[name].answer for name in log.edited} == {said}
    assert "4 answers were edited after they were written" in caplog.text
    (run,) = open_runs([f"run={tmp_path / 'run'}"])
    score_of_it = score_runs([run], data, {})["corrected"]["run"][NAME]
    assert "4 of 5 answers edited after they were written" in score_of_it.completeness
    benchmark = create(NAME)
    result = score(benchmark, list(benchmark.questions(data)), path.parent, data, "corrected")
    assert len(result["edited"]) == 4 and "EDITED: 4 answers" in as_line(result)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {**row, "answer": "an edit", "id": row["id"] + "0"},
        lambda row: {**row, "answer": "an edit", "prompt": "human: another"},
        lambda row: {**row, "answer": "an edit", "positions": 8},
        lambda row: {**row, "answer": "an edit", "check_question": "0" * 16},
        lambda row: {**row, "answer": "an edit", "check": None},
        lambda row: {**row, "answer": None},
        lambda row: {**row, "answer": "yes", "stopped": "error"},
        lambda row: {**row, "answer": row["answer"][:-1] + chr(ord(row["answer"][-1]) ^ 1)},
    ],
)
def test_what_is_no_edit_of_an_answer_is_damage(whole, tmp_path, change):
    """Another question, a checksum of its own, and one flipped bit; what to do about it stands in the message."""
    shutil.copytree(whole, tmp_path / "run")
    edited_lines(tmp_path / "run" / NAME / "answers-00000.jsonl", change)
    with pytest.raises(DataError, match="Remove the line, and .*; if you changed it yourself, remove its field check"):
        AnswerLog(tmp_path / "run" / NAME)


def test_an_edited_line_without_its_check_is_read(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / NAME / "answers-00000.jsonl"
    edited_lines(path, lambda row: without_check({**row, "answer": "yer"}))
    assert [one.answer for one in AnswerLog(path.parent).answers.values() if one.answer] == ["yer"] * 4
