"""Answers on disk survive kills; work is shared by cost; a folder belongs to one run."""

from __future__ import annotations

import json
import random

import pytest

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate import provenance
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.batching import cost_of, share_out
from megatron_v2pe.evaluate.provenance import checkpoint_digest, settle
from megatron_v2pe.foreign.seal import seal


def answer(name, text="yes"):
    return Answer(name, text, "human: what", 10, 1, 2, 0.1, "stop")


def failed(name, problem="gone.png: no such image", stopped="error"):
    return Answer(name, None, "human: what", 0, 0, 0, 0.0, stopped, problem)


def test_a_torn_line_is_asked_again_and_nothing_else(tmp_path):
    log = AnswerLog(tmp_path, 0)
    for name in ("a", "b", "c"):
        log.add(answer(name))
    log.close()
    path = tmp_path / "answers-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    again = AnswerLog(tmp_path, 0)
    assert set(again.answers) == {"a", "b"}
    again.add(answer("c", "\u5716 no"))
    again.close()
    read = AnswerLog(tmp_path)
    assert [read.answers[name].answer for name in ("a", "b", "c")] == ["yes", "yes", "\u5716 no"]
    assert len(path.read_text().splitlines()) == 3


def test_other_processes_answers_count_and_duplicates_are_told(tmp_path):
    for writer, names in ((0, "ab"), (3, "bc")):
        log = AnswerLog(tmp_path / "alone", writer)  # as two runs at once would write
        log.answers.clear()
        for name in names:
            log.add(answer(name, str(writer)))
        log.close()
    read = AnswerLog(tmp_path / "alone")
    assert {name: one.answer for name, one in read.answers.items()} == {"a": "0", "b": "0", "c": "3"}
    assert read.duplicates == ["b"]


def test_an_answer_counts_before_an_error_in_whichever_order(tmp_path):
    """The image was missing and then supplied: asked again, answered; nothing that was written is changed."""
    log = AnswerLog(tmp_path, 0)
    for line in (failed("a", "first"), failed("b"), answer("c")):
        log.add(line)
    log.close()
    before = (tmp_path / "answers-00000.jsonl").read_bytes()
    later = AnswerLog(tmp_path, 0)
    later.add(failed("a", "second"))
    later.add(answer("b", "seen now"))
    with pytest.raises(AssertionError, match="c was asked twice"):
        later.add(answer("c"))
    later.close()
    assert (tmp_path / "answers-00000.jsonl").read_bytes().startswith(before)
    other = AnswerLog(tmp_path, 1)  # another process of a run at the same time
    other.answers.clear()
    for line in (failed("b"), failed("c"), failed("d"), failed("e", "", "killed")):
        other.add(line)
    other.close()
    third = AnswerLog(tmp_path, 2)
    third.add(failed("e", "too late"))
    third.close()
    read = AnswerLog(tmp_path)
    assert {name: (one.answer, one.error) for name, one in read.answers.items()} == {
        "a": (None, "second"),
        "b": ("seen now", None),
        "c": ("yes", None),
        "d": (None, "gone.png: no such image"),
        "e": (None, ""),  # what ended its run is not forgotten over an ordinary error
    }
    assert read.duplicates == []


def test_a_damaged_line_is_named(tmp_path):
    log = AnswerLog(tmp_path, 1)
    log.add(answer("a"))
    log.add(answer("b"))
    log.close()
    path = tmp_path / "answers-00001.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(DataError, match=r"answers-00001.jsonl:1: not valid JSON.*Remove the line"):
        AnswerLog(tmp_path)


def test_shares_are_balanced_by_cost():
    draw = random.Random(0)
    costs = [draw.choice([1, 2, 3, 500]) for _ in range(200)]
    shares = share_out(costs, 7)
    assert sorted(number for share in shares for number in share) == list(range(200))
    loads = [sum(costs[number] for number in share) for share in shares]
    assert max(loads) <= 4 / 3 * max(sum(costs) / 7, max(costs))
    assert share_out([5, 5, 5, 5], 2) == [[0, 2], [1, 3]] and share_out([], 3) == [[], [], []]
    assert cost_of(100, 12, 10, 256) > cost_of(100, 1, 10, 256) > cost_of(100, 1, 1, 256)


def test_a_folder_belongs_to_one_run(tmp_path):
    settle(tmp_path / "out", {"checkpoint": "x", "rope_pos_id_stride": "64"})
    settle(tmp_path / "out", {"checkpoint": "x", "rope_pos_id_stride": "64"})
    with pytest.raises(ConfigError, match="rope_pos_id_stride 64 there, 16 now"):
        settle(tmp_path / "out", {"checkpoint": "x", "rope_pos_id_stride": "16"})


def test_checkpoints_are_told_apart(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(9 << 20))
    before = checkpoint_digest(tmp_path)
    assert checkpoint_digest(tmp_path) == before
    for place in (0, 9 << 19, (9 << 20) - 1):  # a byte anywhere is another checkpoint
        content = bytearray(9 << 20)
        content[place] = 1
        (tmp_path / "weights").write_bytes(content)
        assert checkpoint_digest(tmp_path) != before


def test_later_versions_of_the_code_are_noted(tmp_path, monkeypatch):
    for version in ("1", "2", "1", "2", "3"):
        monkeypatch.setattr(provenance, "code_version", lambda version=version: version)
        settle(tmp_path, {"stride": 1})
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["code"] == "1" and content["later_code"] == ["2", "3"]


def test_devices_are_noted_and_refuse_nothing(tmp_path):
    """An evaluation may end on another machine than it began on; folders of older versions do not name one."""
    for device in ("cpu, 2 threads", "cuda:0, a card", "cpu, 2 threads", "cuda:0, a card", "cpu, 8 threads"):
        settle(tmp_path / "new", {"dtype": "fp32"}, device)
    content = json.loads((tmp_path / "new" / "run.json").read_text())
    assert content["device"] == "cpu, 2 threads"
    assert content["later_devices"] == ["cuda:0, a card", "cpu, 8 threads"]
    old = {"settings": {"dtype": "fp32"}, "code": "0.1.0"}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps(seal(old)))
    settle(tmp_path / "old", {"dtype": "fp32"}, "cuda:0, a card")
    content = json.loads((tmp_path / "old" / "run.json").read_text())
    assert (content["device"], content["later_devices"]) == ("-", ["cuda:0, a card"])
    with pytest.raises(ConfigError, match="dtype fp32 there, bf16 now"):
        settle(tmp_path / "old", {"dtype": "bf16"}, "cuda:0, a card")
