"""Made-up sets of benchmarks that ask for one of some choices: ScienceQA, POPE, MMMU, MMBench and SEED."""

from __future__ import annotations

import base64
import csv
import io
from typing import Any

from PIL import Image

from megatron_v2pe.workshop.synthetic.benchmark_sets.files import LETTERS, SHAPES, Maker, Writer

_ASK_SHORT = "Answer the question using a single word or phrase."
_ASK_LETTER = "Answer with the option's letter from the given choices directly."


def _scienceqa(make: Maker) -> None:
    rows = []
    for number in range(make.questions):
        path = f"data/scienceqa/images/test/{number}/image.png"
        drawn = make.picture(path)
        choices = make.choices(drawn.colour, 2 + number % 3)
        rows.append(
            {
                "image": path,
                "hint": "Look at the middle.\nThere is a shape." if number % 2 else "",
                "question": f"Which colour has the {drawn.shape}?",
                "choices": choices,
                "answer": choices.index(drawn.colour),
            }
        )
    make.lines("data/scienceqa/scienceqa_test_img.jsonl", rows)


def _pope(make: Maker) -> None:
    rows: list[dict[str, Any]] = []
    for category in ("adversarial", "popular", "random"):
        labels = []
        for number in range(2):
            image = f"COCO_val2014_{number:012d}.jpg"
            shape = make.named(image).picture(f"data/pope/val2014/{image}").shape
            seen = shape if number else next(other for other in SHAPES if other != shape)
            text = f"Is there a {seen} of the {category} kind in the image?"
            labels.append({"question_id": number + 1, "image": image, "text": text, "label": ("no", "yes")[number]})
            rows.append(
                {
                    "question_id": len(rows) + 1,
                    "image": image,
                    "text": f"{text}\n{_ASK_SHORT}",
                    "category": category,
                }
            )
        make.lines(f"data/pope/coco/coco_pope_{category}.json", labels)
    make.lines("data/pope/llava_pope_test.jsonl", rows)


def _mmmu(make: Maker) -> None:
    split = {"mmmu_dev": "dev", "mmmu_val": "validation", "mmmu_test": "test"}[make.name]
    for subject in ("Art", "Basic_Medical_Science", "Math"):
        folder, rows = f"data/MMMU/{subject}", []
        for number in range(1, 4):
            drawn = [make.draw() for _ in range(1 + 3 * (number == 2))]
            key = f"{split}_{subject}_{number}"
            if number == 3:
                options, answer = [], str([drawn[0].colour, f"{drawn[0].colour} paint"])
            else:
                options = ["<image 2>", "<image 3>", "<image 4>"] if number == 2 else make.choices(drawn[0].colour)
                answer = "B" if number == 2 else LETTERS[options.index(drawn[0].colour)]
            row: dict[str, Any] = {
                "id": key,
                "question": f" What colour is the {drawn[0].shape} of <image 1>? ",
                "options": repr(options),
                "explanation": "",
                **{f"image_{place}": None for place in range(1, 8)},
                "img_type": "['Drawings']",
                "answer": "?" if split == "test" else answer,
                "topic_difficulty": "Easy",
                "question_type": "multiple-choice" if options else "open",
                "subfield": subject,
            }
            for place, picture in enumerate(drawn, 1):
                name = f"{key}_{place}.png"
                if make.parquet:
                    row[f"image_{place}"] = {"bytes": _png(picture.image), "path": name}
                else:
                    picture.image.save(make.file(f"{folder}/images/{name}"))
                    row[f"image_{place}"] = f"images/{name}"
            rows.append(row)
        if make.parquet:
            images = [f"image_{place}" for place in range(1, 8)]
            make.table(f"{folder}/{split}-00000-of-00001.parquet", rows, images)
        else:
            make.lines(f"{folder}/{split}.jsonl", rows)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


_MMBENCH = {
    "mmbench_dev": "mmbench_dev_20230712.tsv",
    "mmbench_dev_en": "mmbench_dev_en_20231003.tsv",
    "mmbench_dev_cn": "mmbench_dev_cn_20231003.tsv",
    "mmbench_test_en": "mmbench_test_en_20231003.tsv",
    "mmbench_test_cn": "mmbench_test_cn_20231003.tsv",
    "ccbench": "CCBench_legacy.tsv",
}


def _mmbench(make: Maker) -> None:
    legacy, test = make.name == "ccbench", "test" in make.name
    columns = ["index", "question", *([] if legacy else ["hint"]), "A", "B", "C", "D", *([] if test else ["answer"])]
    columns += ["category", "image"] + ([] if legacy else ["source", "l2-category", "comment", "split"])
    rows = []
    for number in range(2):
        drawn = make.draw()
        options = make.choices(drawn.colour, 3)
        for turn in range(2):  # the same question with its options turned
            turned = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": number + 1_000_000 * turn,
                    "question": f"What colour\nis the {drawn.shape}?",
                    "hint": 'Look at the "middle".' if number else "",
                    **dict(zip("ABC", turned, strict=True)),
                    "D": "None" if number else "",
                    "answer": "ABC"[turned.index(drawn.colour)],
                    "category": "attribute_recognition",
                    "image": base64.b64encode(_png(drawn.image)).decode(),
                    "source": "made up",
                    "l2-category": "finegrained_perception",
                    "comment": "",
                    "split": "test" if test else "dev",
                }
            )
    with open(make.file(f"data/mmbench/{_MMBENCH[make.name]}"), "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _seed(make: Maker) -> None:
    rows, official = [], []
    for number, kind in enumerate((1, 1, 2, 10)):
        path = f"SEED-Bench-image/{number}"
        drawn = make.draw()
        drawn.image.save(make.file(f"data/SEED/{path}"), format="PNG")  # published names have no ending
        options = make.choices(drawn.colour)
        key, answer = f"v{number}" if kind >= 10 else str(100 + number), LETTERS[options.index(drawn.colour)]
        question = f"What colour is the {drawn.shape}?"
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        text = "\n".join([question, *lines, _ASK_LETTER])
        rows.append({"image": path, "text": text, "question_id": key, "answer": answer})
        official.append(
            {
                "question_id": key if kind >= 10 else int(key),
                "question_type_id": kind,
                "data_type": "video" if kind >= 10 else "image",
                "question": question,
                **{f"choice_{letter.lower()}": option for letter, option in zip("ABCD", options, strict=True)},
                "answer": answer,
            }
        )
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    make.json("data/SEED/SEED-Bench.json", {"question_type": types, "questions": official})
    make.lines("data/SEED/seed.jsonl", rows)


WRITERS: dict[str, Writer] = {
    **dict.fromkeys(_MMBENCH, _mmbench),
    **dict.fromkeys(("mmmu_dev", "mmmu_val", "mmmu_test"), _mmmu),
    "scienceqa": _scienceqa,
    "pope": _pope,
    "seed": _seed,
}
"""By name."""
