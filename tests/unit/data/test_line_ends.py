"""JSON lines everywhere: what ends a line and what is text, byte order marks, and files that are no UTF-8.

One reader for annotations, questions, answers, metrics and tables; U+2028, U+2029 and NEL inside a string are text.
"""

from __future__ import annotations

import gzip
import json

import pytest

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.errors import ConfigError, DataError, V2PEError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.questions.files import json_lines as benchmark_lines
from megatron_v2pe.evaluate.questions.files import tsv_rows
from megatron_v2pe.foreign.text import json_line, json_lines, parse_json, read_json_object, read_yaml
from megatron_v2pe.generate.jsonl import answered, read_questions
from megatron_v2pe.train.metrics_file import read_metrics

ENDS = "a\u2028b\u2029c\u0085d"
FIRST = {
    "conversations": [{"from": "human", "value": ENDS}, {"from": "gpt", "value": "\u0000"}],
    "answer": ENDS,
    "prompt": ENDS,
}
SECOND = {
    "conversations": [{"from": "human", "value": "two"}, {"from": "gpt", "value": "b"}],
    "answer": "two",
    "prompt": "two",
}
LINES = [json.dumps(row, ensure_ascii=False) for row in (FIRST, SECOND)]


def training(path):
    meta = path.with_suffix(".meta")
    meta.write_text(json.dumps({"d": {"annotation": str(path), "data_augment": False, "repeat_time": 1}}))
    (dataset,) = read_data_list(meta)
    assert [len(block.rows) for block in dataset.blocks(99, 1 << 20)] == [len(dataset)]
    return [dataset.read(number).conversations[0][1] for number in range(len(dataset))]


def questions(path):
    other = path.with_suffix(".questions")
    other.write_bytes(path.read_bytes().replace(b'"conversations"', b'"meta"'))
    return [question.turns[0][1] for question in read_questions(other)]


def benchmark(path):
    return [row["answer"] for _, row in benchmark_lines(path, {"answer": str})]


READERS = {"training": training, "questions": questions, "benchmark": benchmark}
WHOLE = {
    "as written": "\n".join(LINES) + "\n",
    "no end": "\n".join(LINES),
    "CRLF": "\r\n".join(LINES) + "\r\n",
    "byte order mark": "\ufeff" + "\n".join(LINES),
    "two files with marks": "\n".join("\ufeff" + line for line in LINES),
    "a mark alone": "\ufeff\r\n" + "\n".join(LINES),
    "empty lines": "\n \n" + "\n\r\n\t\n".join(LINES) + "\n\n",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", WHOLE)
def test_line_ends_and_marks_are_skipped_and_text_is_text(tmp_path, reader, name):
    path = tmp_path / "a.jsonl"
    path.write_bytes(WHOLE[name].encode())
    assert READERS[reader](path) == [ENDS, "two"]


PLAIN = "\n".join(LINES).replace("\u2028", "").replace("\u2029", "").replace("\u0085", "é")
NOT_UTF8 = {
    "utf-16": (PLAIN.encode("utf-16"), "UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
    "utf-16-le": (PLAIN.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
    "utf-16-be": (PLAIN.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
    "utf-32": (PLAIN.encode("utf-32"), "iconv -f UTF-32 -t UTF-8"),
    "utf-32-be": (PLAIN.encode("utf-32-be"), "iconv -f UTF-32 -t UTF-8"),
    "latin": (PLAIN.encode("latin-1"), "not UTF-8: byte .* is 0xe9 .*; convert it: iconv -f ENCODING"),
    "gzip": (gzip.compress(PLAIN.encode()), "compressed by gzip; unpack it first"),
    "CR": (PLAIN.replace("\n", "\r").encode(), r"its lines end in CR alone: tr '\\r' '\\n' < OLD > NEW"),
    "a list": (json.dumps([FIRST, SECOND], indent=1).encode(), r"jq -c '.\[\]'"),
    "indented": (json.dumps(FIRST, indent=1).encode(), r"jq -c \. OLD"),
    "two in a line": ("".join(LINES).encode(), "a line holds one value"),
    "a hole": (b"\0" * 40 + b"\n" + LINES[0].encode(), "41 NUL bytes and nothing else: damaged"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NOT_UTF8)
def test_what_is_no_utf8_lines_is_named_with_what_to_do(tmp_path, reader, name):
    content, told = NOT_UTF8[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(V2PEError, match=told) as refused:
        READERS[reader](path)
    assert reader == "training" or "/a." in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_later_line_of_utf16_is_named_too():
    line = LINES[1].encode("utf-16-le")
    for part in (line, b"\0" + line):  # cut where the byte 0x0a stands
        with pytest.raises(DataError, match="a.jsonl:7: not UTF-8 but UTF-16"):
            parse_json(part, "a.jsonl:7", DataError)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_settings_lists_and_tables(tmp_path, encoding):
    texts = {"a.yaml": 'a: "é"\n', "a.json": '{"a": "é"}', "a.tsv": "a\tb\né\t2\u2028\u00853\n"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
    readers = (
        lambda: read_yaml(tmp_path / "a.yaml", ConfigError),
        lambda: read_json_object(tmp_path / "a.json", ConfigError),
        lambda: dict(next(tsv_rows(tmp_path / "a.tsv", ["a"]))[1]),
    )
    for read in readers:
        if encoding == "utf-8-sig":
            assert read()["a"] == "é"
        else:
            with pytest.raises(V2PEError, match=f"not UTF-8 but {encoding.upper()}; convert it"):
                read()


def test_what_we_write_we_read_and_so_does_everybody(tmp_path):
    row = {"id": "a", "answer": ENDS + "é书", "finish_reason": "stop_token", "num_tokens": 1}
    line = json_line(row)
    assert line.splitlines() == [line[:-1]] and "é书" in line and json.loads(line) == row
    path = tmp_path / "out.jsonl"
    path.write_text(line + json.dumps({**row, "id": "b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert answered(path) == {"a", "b"}, "also as earlier versions wrote it"
    log = AnswerLog(tmp_path / "bench", writer=0)
    log.add(Answer("1", ENDS, ENDS, 1, 0, 1, 0.5, "stop"))
    log.close()
    assert AnswerLog(tmp_path / "bench").answers["1"].answer == ENDS
    (tmp_path / "m.jsonl").write_bytes(b'\xef\xbb\xbf{"iteration": 1}\r\n\r\n'.replace(b"\r\n\r\n", b"\r\n"))
    assert read_metrics(tmp_path / "m.jsonl") == [{"iteration": 1}]
    assert [value for _, value in json_lines(path, DataError)] == [row, {**row, "id": "b"}]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"a": 1},', "the line is one of a JSON list's: jq -c"),
        ('{"a": 1}]', "the line is one of a JSON list's: jq -c"),
        ("\x1a", "the end of a file as DOS marks it"),
        ("{'a': 1}", "single quotes: written by Python"),
    ],
)
def test_what_other_tools_write_in_place_of_json_is_named(line, told):
    with pytest.raises(DataError, match=told):
        parse_json(line.encode(), "a.jsonl:1", DataError)
