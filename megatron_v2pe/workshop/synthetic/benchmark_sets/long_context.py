"""Made-up sets of benchmarks of long contexts and many images: MM-NIAH, MileBench and Long-VQA.

Lengths of contexts are declared, as MM-NIAH's files declare them, not real: samples are short.
"""

from __future__ import annotations

from typing import Any

from megatron_v2pe.workshop.synthetic.benchmark_sets.files import COLOURS, Maker, Writer


def _mmniah(make: Maker) -> None:
    _, split, task, needle = make.name.split("_")
    folder = f"dataset/benchmark/MM-NIAH/mm_niah_{split}"
    rows = [_needle(make, f"{folder}/images", task, needle, number) for number in range(make.questions)]
    make.lines(f"{folder}/annotations/{task}-{needle}.jsonl", rows)


def _mmniah_long(make: Maker) -> None:
    length = make.name.removeprefix("mmniah_long_")
    thousands = {"128k": 128, "256k": 256, "512k": 512, "1m": 1000}[length]
    rows = [
        _needle(make, "dataset/image/long_mr/val", "retrieval", "image", number, thousands * 1000)
        for number in range(make.questions)
    ]
    make.lines(f"dataset/val/long_mr_{length}/retrieval-image.jsonl", rows)


def _needle(make: Maker, images: str, task: str, needle: str, number: int, length: int | None = None) -> dict[str, Any]:
    key = f"{make.name}_{number}"
    shown = [make.picture(f"{images}/{key}_{place}.png") for place in range(2)]
    answer: Any = make.random.choice(COLOURS)
    words = f"The {'secret' if task != 'counting' else 'counted'} colour is {answer}. "
    context = f"A page of text. <image> {words if needle == 'text' else ''}Another page. <image> The last page."
    choices: list[str] | None = None
    pictures: list[str] | None = None
    if task == "counting":
        answer = [number, number + 1]
    elif needle == "image" and (task == "reasoning" or number % 2):
        pictures = [f"{key}_choice{place}.png" for place in range(3)]
        answer, colours = number % 3, make.random.sample(COLOURS, 3)
        for name, colour in zip(pictures, colours, strict=True):
            make.picture(f"{images}/{name}", colour)
    elif needle == "image":
        choices = make.choices(shown[0].colour)
        answer = choices.index(shown[0].colour)
    depth = round(0.2 * number + 0.1, 1)
    return {
        "id": number,
        "images_list": [f"{key}_{place}.png" for place in range(2)],
        "context": context,
        "question": "What is the colour?" if task != "counting" else "How often is it? Give a list, as in [1, 2].",
        "answer": answer,
        "meta": {
            "placed_depth": [depth, depth] if task == "counting" else depth,
            "context_length": length or 1500 * (number + 1),
            "context_length_text": 20,
            "context_length_image": 512,
            "num_images": 2,
            "needles": [words],
            "choices": choices,
            "choices_image_path": pictures,
        },
    }


MILEBENCH_OPEN = (
    *("ALFRED", "CLEVR-Change", "DocVQA", "IEdit", "MMCoQA", "OCR-VQA", "Spot-the-Diff"),
    *("TextNeedleInAHaystack", "ImageNeedleInAHaystack"),
)
"""Sets written as open-ended."""
MILEBENCH_CHOICE = (
    *("ActionLocalization", "ActionPrediction", "ActionSequence", "CharacterOrder", "CounterfactualInference"),
    *("EgocentricNavigation", "MovingAttribute", "MovingDirection", "ObjectExistence", "ObjectInteraction"),
    *("ObjectShuffle", "SceneTransition", "StateChange", "MultiModalQA", "nuscenes", "SlideVQA", "TQA", "WebQA"),
    *("WikiVQA", "GPR1200"),
)
"""Sets written as multiple choice."""


def _milebench(make: Maker) -> None:
    names = {name.lower().replace("-", "_"): name for name in (*MILEBENCH_OPEN, *MILEBENCH_CHOICE)}
    dataset = names[make.name.removeprefix("milebench_")]
    folder, open_ended = f"dataset/benchmark/MileBench/{dataset}", dataset in MILEBENCH_OPEN
    samples = []
    for number in range(make.questions):
        paths = [f"{number}_{place}.png" for place in range(1 + (number + 2) % 3)]
        drawn = [make.picture(f"{folder}/images/{path}") for path in paths]
        places = " ".join(f"{{image#{place}}}" for place in range(1, len(paths) + 1))
        # In one sample an image more than there are places.
        context = f"Pictures: {places} Colour of the last one?" if number != 1 else "Colour of the picture?"
        instance: dict[str, Any] = {"context": context, "images_path": paths}
        if not open_ended:
            many = [f"kind {kind}" for kind in range(30)] if dataset == "GPR1200" else []
            instance["choice_list"] = make.choices(drawn[-1].colour, 3) + many
        samples.append(
            {
                "sample_id": number,
                "task_instruction_id": number % 2,
                "task_instance": instance,
                "response": drawn[-1].colour,
                "image_quantity_level": "Few",
            }
        )
    meta = {
        "dataset": dataset,
        "question_type": "open-ended" if open_ended else "multi-choice",
        "task_instruction": ["Look at the pictures and answer.", "Given pictures, say what is asked."],
    }
    make.json(f"{folder}/{dataset}.json", {"meta_data": meta, "data": samples})


LONG_VQA_IMAGE = ("deepform", "docvqa", "infovqa", "kleistercharity", "svqa", "visualmrc")
"""Tasks whose images stand by themselves; those of the others are pasted together."""


def _longvqa(make: Maker) -> None:
    _, length, task = make.name.split("_")
    end = int(length.removesuffix("k"))
    form = "image" if task in LONG_VQA_IMAGE else "paste"
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


FAMILIES: tuple[tuple[str, Writer], ...] = (
    ("mmniah_long_", _mmniah_long),
    ("mmniah_", _mmniah),
    ("milebench_", _milebench),
    ("longvqa_", _longvqa),
)
"""By how a name begins."""
