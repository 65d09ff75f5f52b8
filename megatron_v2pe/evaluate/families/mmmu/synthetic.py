"""Made-up sets of MMMU, in its published form."""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import LETTERS, SETS, Maker, png


@SETS.register("mmmu_dev", "mmmu_val", "mmmu_test")
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
                    row[f"image_{place}"] = {"bytes": png(picture.image), "path": name}
                else:
                    picture.image.save(make.file(f"{folder}/images/{name}"))
                    row[f"image_{place}"] = f"images/{name}"
            rows.append(row)
        if make.parquet:
            images = [f"image_{place}" for place in range(1, 8)]
            make.table(f"{folder}/{split}-00000-of-00001.parquet", rows, images)
        else:
            make.lines(f"{folder}/{split}.jsonl", rows)


_SAMPLE_OPTIONS = {"A": "cat", "B": "the dog", "C": "3.5"}
SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "mmmu": [
        {"question_type": "multiple-choice", "options": _SAMPLE_OPTIONS, "answer": "B"},
        {"question_type": "open", "answer": ["3.5", "a"]},
    ],
    "mmmu_full": [
        {"data_id": "validation_Art_1", "question_type": "multiple-choice", "answer": "B"},
        {"data_id": "validation_Math_2", "question_type": "short-answer", "answer": "3.5"},
    ],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
