"""Made-up sets of MMBench and CCBench, in their published form."""

from __future__ import annotations

import base64
import csv
from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import SETS, Maker, png

_FILES = {
    "mmbench_dev": "mmbench_dev_20230712.tsv",
    "mmbench_dev_en": "mmbench_dev_en_20231003.tsv",
    "mmbench_dev_cn": "mmbench_dev_cn_20231003.tsv",
    "mmbench_test_en": "mmbench_test_en_20231003.tsv",
    "mmbench_test_cn": "mmbench_test_cn_20231003.tsv",
    "ccbench": "CCBench_legacy.tsv",
}


@SETS.register(*_FILES)
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
                    "image": base64.b64encode(png(drawn.image)).decode(),
                    "source": "made up",
                    "l2-category": "finegrained_perception",
                    "comment": "",
                    "split": "test" if test else "dev",
                }
            )
    with open(make.file(f"data/mmbench/{_FILES[make.name]}"), "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


_SAMPLE_OPTIONS = {"A": "cat", "B": "the dog", "C": "3.5"}
SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "mmbench": [
        {"options": _SAMPLE_OPTIONS, "answer": "B", "index": 1},
        {"options": _SAMPLE_OPTIONS, "answer": "C", "index": 1_000_001},
    ],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
