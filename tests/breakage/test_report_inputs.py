"""What evaluation and report are given from outside: question files, names, text that a spreadsheet would run."""

from __future__ import annotations

import csv
import json
import os
import random

import pytest

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark_names import create, expand
from megatron_v2pe.evaluate.embedded_images import store_image
from megatron_v2pe.evaluate.families.mmbench.questions import _decoded
from megatron_v2pe.evaluate.questions.files import json_lines, literal_list, parquet_rows, read_json, tsv_rows
from megatron_v2pe.evaluate.report.csv_files import _write, harmless
from megatron_v2pe.evaluate.scorer_names import SCORERS, scorer_of
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")

LAYOUTS = (
    *("chartqa_human", "docvqa_val", "scienceqa", "pope", "seed", "mmbench_dev_en", "mmmu_val", "gqa_testdev_llava"),
    *("textvqa_val", "mmniah_test_retrieval_text", "mmniah_test_reasoning_image", "mmniah_long_128k"),
    *("milebench_textneedleinahaystack", "milebench_gpr1200", "longvqa_32k_gqa", "infovqa_val"),
)
"""Benchmarks whose published files differ in form."""
NASTY = (
    *(None, True, -1, 1.5, 10**300, 1e308, "", "\x1b[2J", "../../x", "a\0b", "\ud800", [], [None], [[]], {}, {"a": {}}),
    *("9" * 5000, "=1+1", ["x"], {"0": 1}),
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_question_files_damaged(tmp_path, name):
    """Bytes flipped and cut, values of other types: the questions are read, or one line names the file."""
    write_benchmark(tmp_path / "data", name, questions=3)
    benchmark, draw = create(name, cache=tmp_path / "cache"), random.Random(name)
    kinds = (".json", ".jsonl", ".tsv", ".parquet")
    files = [path for path in sorted((tmp_path / "data").rglob("*")) if path.suffix in kinds]
    assert files
    for path in files:
        whole = path.read_bytes()
        damaged = [whole[: draw.randrange(len(whole))] for _ in range(4)]
        for _ in range(12):
            flipped = bytearray(whole)
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            damaged.append(bytes(flipped))
        if path.suffix == ".jsonl":
            row = json.loads(whole.splitlines()[0])
            damaged += [(json.dumps({**row, key: value}) + "\n").encode() for key in row for value in NASTY]
        if path.suffix == ".json" and isinstance(content := as_json(whole), dict):
            damaged += [json.dumps({**content, key: value}).encode() for key in content for value in NASTY]
            for key, (first, *others) in ((key, value) for key, value in content.items() if is_records(value)):
                damaged += [
                    json.dumps({**content, key: [{**first, field: value}, *others]}).encode()
                    for field in first
                    for value in NASTY
                ]
        for content in damaged:
            path.write_bytes(content)
            try:
                for question in benchmark.questions(tmp_path / "data"):
                    if benchmark.scorer:
                        item = benchmark.item(question, "yes")
                        scorer_of(benchmark.scorer).judge(item, "corrected")
            except DataError as error:
                assert "\x1b" not in str(error), str(error)
        path.write_bytes(whole)


def as_json(content: bytes):
    try:
        return json.loads(content)
    except ValueError:  # JSON lines under another name
        return None


def is_records(value) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_special_files(tmp_path, make):
    make(tmp_path / "special")
    for read in (lambda path: list(json_lines(path, {})), read_json, lambda path: list(tsv_rows(path, ()))):
        with pytest.raises(DataError, match="special: a "):
            read(tmp_path / "special")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="special: a "):
        list(parquet_rows(tmp_path / "special", {}))


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"9" * 5000, b"NaN", b"\xff\xfe", b'{"a": 1e999}', b'{"a": ' * 90 + b"1" + b"}" * 90]
)
def test_bombs_in_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="a.json"):
        list(json_lines(tmp_path / "a.json", {"a": float}))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" + "-" * 100_000 + "1]", "[" + "1+" * 50_000 + "1]", "[" + "9" * 5000 + "]", "[b'x']", "[[1]]"],
)
def test_lists_in_pythons_notation(text):
    with pytest.raises(DataError, match="here: .* is not a list"):
        literal_list("here", text)


def test_images_inside_of_files(tmp_path):
    with pytest.raises(DataError, match="here: column 'image' is not base64"):
        _decoded("here", "\u00e9")
    with pytest.raises(DataError, match="here: .* bytes that are no image"):
        store_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", tmp_path, "here")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["...jsonl", "..jsonl", ".jsonl", "a\x1bb.jsonl", ".lock.jsonl", "x/...jsonl"])
def test_names_stay_in_their_folder(word):
    with pytest.raises(ConfigError) as caught:
        expand([word])
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *(("=1+1", "'=1+1"), ("+a", "'+a"), ("@SUM(1)", "'@SUM(1)"), ("-a", "'-a"), (" =1", "' =1")),
        *(("-1.50", "-1.50"), ("+3", "+3"), ("-", "-"), ("a=b", "a=b"), ("\t=1", "\\t=1"), ("\r=1", "\\r=1")),
        ("\uff1d1", "'\uff1d1"),
    ],
)
def test_no_formulas_in_csv(tmp_path, cell, written):
    _write(tmp_path / "a.csv", ["a"], [[cell]])
    assert harmless(cell) == written and list(csv.reader(open(tmp_path / "a.csv", encoding="utf-8")))[1] == [written]


def test_scorers_on_nasty_answers():
    """No answer of a model ends in a traceback, in either mode: deep JSON, huge numbers, long runs of one letter."""
    answers = [
        *("[" * 100_000, '{"a":' * 50_000, "9" * 5000, "[" + "9" * 5000 + "]", "1e999", "-" * 10_000, "(" * 10_000),
        *(
            "A" * 20_000,
            " " * 20_000,
            "A. " * 5000,
            "yes no " * 5000,
            "\ud800",
            "\0" * 99,
            "1/0",
            "[1e400, NaN]",
            "\u0663",
        ),
        *(
            "0x" + "f" * 5000,
            "1" + ",000" * 5000,
            "." * 20_000,
            "a'" * 9000,
            '"' * 9999,
            "\u202e" * 50,
            "[[[1]]]",
            "{}",
        ),
    ]
    draw = random.Random(0)
    letters = "ABC 01.,[]{}()'\"-+%$\n\\:;yesno\u0660\u00bd"
    answers += ["".join(draw.choice(letters) for _ in range(draw.randrange(60))) for _ in range(40)]
    items = {
        "docvqa": {"answers": ["a"]},
        "chartqa": {"answers": "12.5%"},
        "exact": {"answers": "A"},
        "ocrvqa": {"answers": "A"},
        "textvqa": {"answers": ["a"] * 10},
        "gqa_convert": {"answer": "a"},
        "pope": {"answer": "yes", "category": "random"},
        "mm_niah": {"task": "counting-text-test", "answer": [1, 2], "context_length": 1000, "placed_depth": 0.5},
        "mmmu": {"data_id": "a", "question_type": "open", "answer": "3"},
        "mmbench": {"options": {"A": "x", "B": "y"}, "answer": "A", "index": 1},
        "scienceqa": {"options": {"A": "x", "B": "y"}, "answer": "A"},
        "seed": {"answer": "A", "question_type_id": 1},
        "mvbench": {"answer": "(A) x", "task_type": "State Change", "candidates": ["x", "y"]},
    }
    for name, item in items.items():
        if name not in SCORERS:
            continue
        for mode in ("reference", "corrected"):
            for answer in answers:
                try:
                    SCORERS[name].judge({**item, "prediction": answer}, mode)
                except DataError:
                    continue


def test_a_planted_break_would_be_seen(tmp_path, monkeypatch):
    """Without the types of elements a list of nothing reaches the code behind as a traceback."""
    monkeypatch.setattr("megatron_v2pe.evaluate.questions.files._fits", lambda value, kind: True)
    write_benchmark(tmp_path, "longvqa_32k_gqa", questions=3)
    (path,) = tmp_path.rglob("*.jsonl")
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps({**row, "image": [None]}) + "\n")
    with pytest.raises((TypeError, AttributeError)):
        list(create("longvqa_32k_gqa").questions(tmp_path))
