"""What benchmarks of one or a few images ask, to the letter of the behaviour document; what they refuse."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.hand_written_sets import LETTER, SHORT, ask, text_of, write_json, write_lines
from helpers.opened_images import open_images
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import ImageRef
from megatron_v2pe.evaluate.benchmark_names import create


def picture(path: Path, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def test_single_image_questions(tmp_path):
    row = {"image": "data/chartqa/a.png", "question": "How many?", "question_id": 7, "answer": "3"}
    write_lines(tmp_path / "data/chartqa/test_human.jsonl", row)
    (question,) = ask("chartqa_human", tmp_path)
    assert text_of(question) == f"<image>\nHow many? {SHORT}"
    assert question.id == "7"
    assert question.images == (ImageRef(str(tmp_path / "data/chartqa/a.png")),)
    assert create("chartqa_human").item(question, "4") == {"prediction": "4", "answers": "3"}


def test_paths_stay_as_they_are_below_the_current_folder(tmp_path, monkeypatch):
    write_lines(
        tmp_path / "data/chartqa/test_human.jsonl",
        {"image": "data/chartqa/a.png", "question": "How many?", "question_id": 7, "answer": "3"},
    )
    monkeypatch.chdir(tmp_path)
    assert ask("chartqa_human", Path("."))[0].images == (ImageRef("data/chartqa/a.png"),)


def test_vizwiz(tmp_path):
    row = {"image": "data/vizwiz/test/7.jpg", "question": "What?", "question_id": "data/vizwiz/test/7.jpg"}
    write_lines(tmp_path / "data/vizwiz/vizwiz_test.jsonl", row)
    (question,) = ask("vizwiz_test", tmp_path)
    assert text_of(question) == (
        "<image>\nWhat? When the provided information is insufficient, respond with 'Unanswerable'. " + SHORT
    )


def test_ai2d_asks_the_question_as_it_is_and_images_may_share_an_id(tmp_path):
    row = {"image": "a.png", "question": "Which?\nA. x\nB. y\nAnswer.", "question_id": "a.png", "answer": "B"}
    write_lines(tmp_path / "data/ai2diagram/test_vlmevalkit.jsonl", row, row)
    questions = ask("ai2d", tmp_path)
    assert [question.id for question in questions] == ["0", "1"]
    assert text_of(questions[0]) == "<image>\nWhich?\nA. x\nB. y\nAnswer."


def test_answers_in_another_file_of_another_version(tmp_path):
    write_lines(tmp_path / "data/docvqa/val.jsonl", {"image": "a.png", "question": "?", "question_id": 5})
    write_json(tmp_path / "data/docvqa/val/val_v1.0.json", {"dataset_name": "docvqa", "data": []})
    with pytest.raises(DataError, match=r"val\.jsonl:1: .*val_v1\.0\.json has no question 5"):
        ask("docvqa_val", tmp_path)
    record = {"questionId": 5, "answers": ["x"]}
    write_json(tmp_path / "data/docvqa/val/val_v1.0.json", {"dataset_name": "docvqa", "data": [record, record]})
    with pytest.raises(DataError, match=r"record 1: questionId 5 is there twice"):
        ask("docvqa_val", tmp_path)


def test_ten_people_answer(tmp_path):
    write_lines(tmp_path / "data/okvqa/okvqa_val.jsonl", {"image": "a.png", "question": "?", "question_id": 5})
    answers = [{"answer": f"a{number}", "answer_id": number} for number in range(10)]
    annotations = {"annotations": [{"question_id": 5, "answers": answers}]}
    write_json(tmp_path / "data/okvqa/mscoco_val2014_annotations.json", annotations)
    (question,) = ask("okvqa_val", tmp_path)
    assert question.facts["answers"] == [f"a{number}" for number in range(10)]


def test_scienceqa_with_and_without_hint(tmp_path):
    row = {"image": "a.png", "hint": "Look.\nTwice.", "question": "Which?", "choices": ["x", "y"], "answer": 1}
    write_lines(tmp_path / "data/scienceqa/scienceqa_test_img.jsonl", row, {**row, "hint": ""})
    with_hint, without = ask("scienceqa", tmp_path)
    assert text_of(with_hint) == f"<image>\nLook.\nTwice.\nWhich?\nA. x\nB. y\n{LETTER}"
    assert text_of(without) == f"<image>\nWhich?\nA. x\nB. y\n{LETTER}"
    assert create("scienceqa").item(without, "B") == {
        "prediction": "B",
        "options": {"A": "x", "B": "y"},
        "answer": "B",
    }
    write_lines(tmp_path / "data/scienceqa/scienceqa_test_img.jsonl", {**row, "answer": 2})
    with pytest.raises(DataError, match=r":1: answer 2, but there are 2 choices"):
        ask("scienceqa", tmp_path)


def _pope(root: Path, text: str = "Is there a cat in the image?") -> None:
    asked = {"question_id": 1, "image": "a.jpg", "text": f"Is there a cat in the image?\n{SHORT}"}
    rows = [
        {**asked, "question_id": number, "category": category}
        for number, category in enumerate(("adversarial", "popular", "random"), 1)
    ]
    write_lines(root / "data/pope/llava_pope_test.jsonl", *rows)
    for row in rows:
        label = {"question_id": 1, "image": "a.jpg", "text": text, "label": "yes"}
        write_lines(root / f"data/pope/coco/coco_pope_{row['category']}.json", label)


def test_pope(tmp_path):
    _pope(tmp_path)
    questions = ask("pope", tmp_path)
    assert text_of(questions[0]) == f"<image>\nIs there a cat in the image?\n{SHORT} "
    assert questions[0].images == (ImageRef(str(tmp_path / "data/pope/val2014/a.jpg")),)
    assert [question.facts["category"] for question in questions] == ["adversarial", "popular", "random"]


def test_pope_refuses_labels_of_other_questions(tmp_path):
    _pope(tmp_path, text="Is there a dog in the image?")
    with pytest.raises(DataError, match=r"test.jsonl:1: no label for 'Is there a cat in the image\?'.*e3e39"):
        ask("pope", tmp_path)
    _pope(tmp_path)
    path = tmp_path / "data/pope/coco/coco_pope_random.json"
    path.write_text(path.read_text() + path.read_text().replace("cat", "dog"))
    with pytest.raises(DataError, match="1 labels have no question"):
        ask("pope", tmp_path)


def _mmmu(root: Path, **changes: Any) -> None:
    row = {f"image_{number}": None for number in range(1, 8)} | {
        "id": "validation_Art_1",
        "question": " Which is like <image 1>? ",
        "options": "['<image 2>', ' it\\'s ']",
        "answer": "A",
        "question_type": "multiple-choice",
        "image_1": "images/1.png",
        "image_2": "images/2.png",
    }
    write_lines(root / "data/MMMU/Art/validation.jsonl", {**row, **changes})
    for number in (1, 2):
        picture(root / f"data/MMMU/Art/images/{number}.png")


def test_mmmu_places_every_image(tmp_path):
    _mmmu(tmp_path)
    (question,) = ask("mmmu_val", tmp_path)
    assert text_of(question) == (
        f"The <image 1> is <image>, The <image 2> is <image>\nWhich is like <image 1>?\nA. <image 2>\nB. it's\n{LETTER}"
    )
    first, second = question.images
    assert (first.enlarge, first.max_tiles, second.enlarge, second.max_tiles) == (2, None, 1, 1)
    assert [image.size for image in open_images(question.images)] == [(40, 20), (20, 10)]
    assert not question.joined
    assert create("mmmu_val").item(question, "B") == {
        "prediction": "B",
        "data_id": "validation_Art_1",
        "question_type": "multiple-choice",
        "options": {"A": "<image 2>", "B": "it's"},
        "answer": "A",
    }


def test_mmmu_as_models_without_v2pe_were_asked(tmp_path):
    _mmmu(tmp_path)
    (question,) = ask("mmmu_val", tmp_path, mode="reference")
    assert text_of(question) == f"<image>\nWhich is like <image 1>?\nA. <image 2>\nB. it's\n{LETTER}"
    assert question.joined and len(question.images) == 2


def test_mmmu_open_questions(tmp_path):
    _mmmu(tmp_path, options="[]", answer="['24/7', '3.429']", question_type="open", image_2=None)
    (question,) = ask("mmmu_val", tmp_path)
    assert text_of(question) == f"The <image 1> is <image>\nWhich is like <image 1>?\n{SHORT}"
    assert question.facts["answer"] == ["24/7", "3.429"]
    assert "options" not in question.facts


def test_mmmu_runs_nothing_of_the_data(tmp_path):
    _mmmu(tmp_path, options="__import__('os').getcwd()")
    with pytest.raises(DataError, match=r"validation.jsonl:1: .* is not a list"):
        ask("mmmu_val", tmp_path)


def _mmbench(root: Path, name: str, header: str, *rows: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "blue").save(stream, format="PNG")
    image = base64.b64encode(stream.getvalue()).decode()
    path = root / "data/mmbench" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows, ""]).replace("IMAGE", image), encoding="utf-8")


HEADER = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit"


def test_mmbench(tmp_path):
    row = '3\tWhich?\t"Two\nlines"\tx\tNone\t\t\tA\tkind\tIMAGE\ts\tl2\tc\tdev'
    _mmbench(tmp_path, "mmbench_dev_en_20231003.tsv", HEADER, row)
    (question,) = ask("mmbench_dev_en", tmp_path, cache=tmp_path / "cache")
    assert text_of(question) == f"<image>\nTwo\nlines\nWhich?\nA. x\nB. None\n{LETTER}"
    assert create("mmbench_dev_en").item(question, "A") == {
        "prediction": "A",
        "index": 3,
        "options": {"A": "x", "B": "None"},
        "answer": "A",
        "category": "kind",
        "l2-category": "l2",
    }
    (question,) = ask("mmbench_dev_en", tmp_path, cache=tmp_path / "cache", mode="reference")
    assert text_of(question) == f"<image>\nTwo\nlines\nWhich?\nA. x\n{LETTER}"


def test_mmbench_in_chinese(tmp_path):
    _mmbench(
        tmp_path,
        "CCBench_legacy.tsv",
        "index\tquestion\tA\tB\tC\tD\tanswer\tcategory\timage",
        "0\t名称?\t天坛\t故宫\t\t\tA\tk\tIMAGE",
    )
    (question,) = ask("ccbench", tmp_path, cache=tmp_path / "cache")
    assert text_of(question) == "<image>\n名称?\nA. 天坛\nB. 故宫\n请直接回答选项字母。"


@pytest.mark.parametrize(
    "row, message",
    [
        ("x\tq\t\ta\tb\t\t\tA\tk\tIMAGE\ts\tl\tc\td", ":2: index 'x' is not a number"),
        ("1\tq\t\ta\tb\t\t\tC\tk\tIMAGE\ts\tl\tc\td", ":2: the answer 'C' is none of the options"),
        ("1\tq\t\ta\tb\t\t\tA\tk\tnot base64\ts\tl\tc\td", ":2: column 'image' is not base64"),
        ("1\tq\t\ta\tb\t\t\tA\tk\tAAAA\ts\tl\tc\td", ":2: 3 bytes that are no image"),
        ("1\tq\t\ta\tb", ":2: 5 cells, but the header has 14"),
    ],
)
def test_mmbench_refuses(tmp_path, row, message):
    _mmbench(tmp_path, "mmbench_dev_en_20231003.tsv", HEADER, row)
    with pytest.raises(DataError, match=message):
        ask("mmbench_dev_en", tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("mode, predictions", [("corrected", ["A", "=1+1", ""]), ("reference", ["A", "=1+1", ""])])
def test_the_table_of_mmbench(tmp_path, mode, predictions):
    openpyxl = pytest.importorskip("openpyxl", reason="tables need the eval extra")
    pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")
    rows = [f"{index}\t=Which?\thint\tx\ty\t\t\tA\tkind\tIMAGE\ts\tl2\tc\tdev" for index in (1, 2, 1000001)]
    _mmbench(tmp_path, "mmbench_dev_20230712.tsv", HEADER, *rows)
    benchmark = create("mmbench_dev", mode=mode, cache=tmp_path / "cache")
    answers = list(zip(benchmark.questions(tmp_path), ["A. x", "=1+1", ""], strict=True))
    path = benchmark.submission(tmp_path, answers, tmp_path)
    table = list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))
    assert table[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert [row[0] for row in table[1:]] == [1, 2, 1000001]
    assert [row[6] or "" for row in table[1:]] == predictions
    assert table[1][1:6] == ("=Which?", "x", "y", None, None)


def test_seed(tmp_path):
    row = {"image": "SEED-Bench-image/1", "text": "Which?\nA. x", "question_id": "101", "answer": "B"}
    write_lines(tmp_path / "data/SEED/seed.jsonl", row)
    official = {"question_id": 101, "answer": "A", "question_type_id": 3}
    write_json(tmp_path / "data/SEED/SEED-Bench.json", {"questions": [official]})
    (question,) = ask("seed", tmp_path)
    assert text_of(question) == "<image>\nWhich?\nA. x"
    assert question.images == (ImageRef(str(tmp_path / "data/SEED/SEED-Bench-image/1")),)
    assert create("seed").item(question, "A") == {"prediction": "A", "answer": "A", "question_type_id": 3}
