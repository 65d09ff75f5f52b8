"""Real outputs of LLaVA-1.5-13B give the scores published for it; labels of another release are refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

from helpers.shared import shared_path
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.mmmu.scorer import exact_equality, join_answers
from megatron_v2pe.evaluate.families.pope.scorer import check_labels
from megatron_v2pe.evaluate.scorer_names import SCORERS

SPREADSHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
CATEGORIES = ("adversarial", "popular", "random")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predictions(name: str) -> Path:
    return shared_path(f"real/reference_predictions/{name}")


def pope_labels() -> dict[str, list[dict]]:
    return {name: lines(shared_path(f"real/data/pope/coco/coco_pope_{name}.json")) for name in CATEGORIES}


def pope_items() -> list[dict]:
    questions = lines(shared_path("real/data/pope/llava_pope_test.jsonl"))
    labels = pope_labels()
    check_labels(questions, labels)
    answers = {
        line["question_id"]: line["text"] for line in json.loads(predictions("pope/llava-v1.5-13b.json").read_text())
    }
    rest = {name: iter(members) for name, members in labels.items()}
    return [
        {
            "prediction": answers[question["question_id"]],
            "answer": next(rest[question["category"]])["label"],
            "category": question["category"],
        }
        for question in questions
    ]


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a spreadsheet's only sheet."""
    rows = []
    for row in ElementTree.fromstring(zipfile.ZipFile(path).read("xl/worksheets/sheet1.xml")).iter(f"{SPREADSHEET}row"):
        cells = {}
        for cell in row.iter(f"{SPREADSHEET}c"):
            text = next((node.text for node in cell.iter() if node.tag in (f"{SPREADSHEET}t", f"{SPREADSHEET}v")), None)
            if text is not None:
                cells[cell.attrib["r"].rstrip("0123456789")] = text
        rows.append(cells)
    return [{rows[0][column]: text for column, text in row.items()} for row in rows[1:]]


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_pope(mode):
    items = pope_items()
    assert SCORERS["pope"].headline(items, mode) == pytest.approx(85.95, abs=0.005)
    summary = SCORERS["pope"].summary(items, mode)
    counts = {name: tuple(summary[name][count] for count in ("TP", "FP", "TN", "FN")) for name in CATEGORIES}
    assert counts == {
        "adversarial": (1182, 117, 1383, 318),
        "popular": (1182, 59, 1441, 318),
        "random": (1182, 31, 1379, 318),
    }


def test_pope_labels_of_another_release_are_refused():
    questions = lines(shared_path("real/data/pope/llava_pope_test.jsonl"))
    labels = lines(shared_path("real/data/pope/coco_HEAD_mismatching/coco_pope_random.json"))
    with pytest.raises(DataError, match="POPE random: 2984 questions do not match .* 3000 labels for 2910 questions"):
        check_labels(questions, {"random": labels})


def test_one_question_exchanged_is_refused():
    questions = lines(shared_path("real/data/pope/llava_pope_test.jsonl"))
    labels = pope_labels()
    members = labels["popular"]
    members[100], members[101] = members[101], members[100]
    with pytest.raises(DataError, match="POPE popular: 2 questions do not match .* the first is number 101"):
        check_labels(questions, labels)


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_scienceqa(mode):
    items = [
        {
            "prediction": line["answer"],
            "answer": line["gt_answers"],
            "options": dict(zip("ABCDE", line["choices"], strict=False)),
        }
        for line in lines(predictions("scienceqa/llava-v1.5-13b_img.jsonl"))
    ]
    assert SCORERS["scienceqa"].headline(items, mode) == pytest.approx(71.64, abs=0.005)


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_mmbench(mode):
    items = [
        {
            "prediction": row.get("prediction"),
            "answer": row["answer"],
            "index": int(row["index"]),
            "options": {letter: row[letter] for letter in "ABCD" if letter in row},
        }
        for row in table(predictions("mmbench/mmbench_dev_20230712_llava-v1.5-13b.xlsx"))
    ]
    assert len(items) == 4377
    assert SCORERS["mmbench"].headline(items, mode) == pytest.approx(67.69, abs=0.005)
    assert SCORERS["mmbench"].summary(items, mode)["accuracy"] == pytest.approx(0.7645, abs=5e-5)


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_seed(mode):
    items = [
        {
            "prediction": line["prediction"],
            "answer": line["answer"],
            "data_type": "video" if line["question_id"].startswith("v") else "image",
        }
        for line in lines(predictions("seed/llava-v1.5-13b.jsonl"))
    ]
    summary = SCORERS["seed"].summary(items, mode)
    assert SCORERS["seed"].headline(items, mode) == summary["Image accuracy"] == 68.21
    assert (summary["Total accuracy"], summary["Video accuracy"]) == (62.80, 42.32)


def test_mmmu():
    """Raw responses through V2PE's pipeline; the parsed answers beside them give the same by plain equality."""
    folder = predictions("mmmu/llava1.5_13b")
    items = [
        {
            "data_id": line["id"],
            "prediction": line["response"],
            "answer": line["answer"],
            "question_type": line["question_type"],
            "options": line.get("index2ans") or {},
        }
        for path in sorted(folder.glob("*/output.json"))
        for line in json.loads(path.read_text())
    ]
    assert len(items) == 900
    assert SCORERS["mmmu_full"].headline(items) == pytest.approx(36.44, abs=0.005)
    parsed = json.loads((folder / "total_val_output.json").read_text())
    answers = json.loads(shared_path("real/data/mmmu/answer_dict_val.json").read_text())
    final = join_answers([{"data_id": name, "prediction": answer} for name, answer in parsed.items()], answers)
    assert exact_equality(final) == pytest.approx(36.44, abs=0.005)
    # The official report is lenient with two free answers: "3.0" for 3 and "step b" for B.
    assert SCORERS["mmmu_full"].summary(final)["Overall"] == {"num": 900, "acc": 0.367}


@pytest.mark.parametrize(
    ("model", "score", "corrected"),
    [("qwen2_vl_7b_instruct", 89.42, 89.74), ("qwen2_vl_2b_instruct", 67.43, 67.83), ("llama_vision", 6.95, 8.13)],
)
def test_docvqa(model, score, corrected):
    """The corrected form drops marks around texts and reads stated answers; other sentences stay sentences."""
    truths = json.loads(predictions("docvqa/gt_subset_val_v1.0.json").read_text())["data"]
    answers = {question["questionId"]: question["answers"] for question in truths}
    items = [
        {"prediction": line["answer"], "answers": answers[line["questionId"]]}
        for line in json.loads(predictions(f"docvqa/{model}.json").read_text())
    ]
    assert SCORERS["docvqa"].headline(items) == pytest.approx(score, abs=0.005)
    assert SCORERS["docvqa"].headline(items, "corrected") == pytest.approx(corrected, abs=0.005)
