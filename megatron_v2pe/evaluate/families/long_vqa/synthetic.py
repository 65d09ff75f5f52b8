"""Made-up sets of Long-VQA's 17 tasks at five lengths, in their published form."""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import SETS, Maker

IMAGE_TASKS = ("deepform", "docvqa", "infovqa", "kleistercharity", "svqa", "visualmrc")
"""Tasks whose images stand by themselves."""
PASTE_TASKS = (
    *("chartqa", "clevr", "dvqa", "gqa", "ocrvqa", "okvqa", "tabfact", "textcaps", "textvqa", "vizwiz"),
    "wikitablequestions",
)
"""Tasks whose images are pasted together."""
_LENGTHS = (32, 40, 48, 56, 64)


@SETS.register(*(f"longvqa_{length}k_{task}" for length in _LENGTHS for task in (*IMAGE_TASKS, *PASTE_TASKS)))
def _longvqa(make: Maker) -> None:
    _, length, task = make.name.split("_")
    end = int(length.removesuffix("k"))
    form = "image" if task in IMAGE_TASKS else "paste"
    rows = []
    for number in range(make.questions):
        paths = [f"{length}_{number}_{place}.png" for place in range(2)]
        drawn = [make.picture(f"dataset/image/long_vqa/{form}/{task}/val/{path}") for path in paths]
        answer = drawn[1].colour
        if task in ("textcaps", "visualmrc"):
            answer = f"a {drawn[1].colour} {drawn[1].shape} on a white sheet"
        elif task == "tabfact":
            answer = ("Yes", "No")[number % 2]
        elif task == "svqa":
            answer = "ABCD"[number % 4]
        question = "Image-1: <image>\nImage-2: <image>\nQuestion about Image-2: What is in the picture?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append(
            {
                "id": f"{task}_{number}",
                "image": paths,
                "conversations": turns,
                "metadata": {"context_length": end * 1000 - number},
            }
        )
    begin = 16 if end == 32 else end - 8
    make.lines(f"dataset/val/long_vqa_{end}k/val_long_vqa_{task}_{begin}_{end}.jsonl", rows)


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "longvqa": [
        {"task": task, "answer": "3 dogs"}
        for task in (
            "chartqa",
            "docvqa",
            "deepform",
            "tabfact",
            "svqa",
            "wikitablequestions",
            "textvqa",
            "textcaps",
            "?",
        )
    ],
    "longvqa_metric": [
        {"metric": metric, "answer": "the cats are"}
        for metric in "ACC F1 WTQ ANLS_DUE EACC RACC CACC ANLS TEXTVQA BLEU1 BLEU2 BLEU3 BLEU4 CIDER ROUGE".split()
    ],
    "longvqa_rectify": [{"task": task} for task in ("gqa", "svqa", "tabfact", "docvqa")],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
