"""Made-up sets of Long-VQA's 17 tasks at five lengths, in their published form."""

from __future__ import annotations

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
