"""Small made-up sets in the exact format of every benchmark, so that evaluation runs end to end without a download.

Pictures show one coloured shape each, and questions ask for its colour; a few questions a file. Paths and fields are
those of the published files, written down here a second time so that tests compare two independent statements.
Lengths of contexts are declared, as MM-NIAH's files declare them, not real: samples are short. MMMU and Video-MME are
written as Parquet where PyArrow is installed, otherwise as JSON lines; videos need PyAV (the `video` extra).
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from megatron_v2pe.errors import DataError
from megatron_v2pe.keyed_random import seed_of

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
_SHAPES = ("circle", "square", "triangle")
_LETTERS = "ABCDE"
_ASK_SHORT = "Answer the question using a single word or phrase."
_ASK_OPTIONS = "Please answer the question based on the options mentioned before."
_ASK_LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Drawn:
    """A picture and what it shows."""

    image: Image.Image
    colour: str
    shape: str


class Maker:
    """Draws pictures and writes files below a folder, the same for the same seed and name."""

    def __init__(self, root: Path, seed: int, name: str, questions: int, parquet: bool) -> None:
        """Start on one benchmark.

        Args:
            root: folder the published paths are relative to.
            seed: of all draws.
            name: of the benchmark.
            questions: of each of its files.
            parquet: whether files that are published as Parquet are written so.
        """
        self.root, self.seed, self.name, self.questions, self.parquet = root, seed, name, questions, parquet
        self.random = Random(seed_of(seed, name, purpose="synthetic"))

    def named(self, name: str) -> Maker:
        """Return a maker with draws of its own."""
        return Maker(self.root, self.seed, name, self.questions, self.parquet)

    def draw(self, colour: str | None = None) -> Drawn:
        """Return a picture of a coloured shape."""
        width, height = self.random.randrange(48, 160), self.random.randrange(48, 120)
        colour, shape = colour or self.random.choice(COLOURS), self.random.choice(_SHAPES)
        image = Image.new("RGB", (width, height), "white")
        draw, box = ImageDraw.Draw(image), (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), (width // 2, box[1])], fill=colour)
        return Drawn(image, colour, shape)

    def picture(self, path: str, colour: str | None = None) -> Drawn:
        """Write a picture; return what it shows."""
        drawn = self.draw(colour)
        drawn.image.save(self.file(path))
        return drawn

    def choices(self, answer: str, number: int = 4) -> list[str]:
        """Return so many colours in a drawn order, one of which is the answer."""
        others = self.random.sample([colour for colour in COLOURS if colour != answer], number - 1)
        return self.random.sample([answer, *others], number)

    def file(self, path: str) -> Path:
        """Return a path below the root whose folder is there."""
        found = self.root / path
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def lines(self, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write JSON lines."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file(path).write_text(text, encoding="utf-8")

    def json(self, path: str, content: Any) -> None:
        """Write JSON."""
        self.file(path).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")

    def table(self, path: str, rows: Sequence[Mapping[str, Any]], images: Sequence[str] = ()) -> None:
        """Write Parquet; columns of images are `bytes` and `path`, as the `datasets` library stores them."""
        import pyarrow
        from pyarrow import parquet

        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        columns = {
            name: pyarrow.array([row[name] for row in rows], type=image if name in images else None) for name in rows[0]
        }
        parquet.write_table(pyarrow.table(columns), self.file(path))

    def video(self, path: str, frames: int = 40, rate: int = 10) -> None:
        """Write a video whose shape changes its colour."""
        try:
            import av
        except ImportError:
            raise DataError(f"{path}: video files need PyAV: pip install 'megatron-v2pe[video]'") from None
        with av.open(str(self.file(path)), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                image = Image.new("RGB", (64, 48), COLOURS[number * len(COLOURS) // frames])
                for packet in stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)


@dataclass(frozen=True)
class Lines:
    """Where the questions about single images stand."""

    file: str
    images: str
    answers: str = ""
    """Another file that has the answers: `documents PATH`, `votes PATH`, `gqa PATH`; `line`: they are in the lines."""
    id: str = "number"
    """What `question_id` is: `number`, or `path` of the image."""


SINGLE_IMAGE = {
    "chartqa_human": Lines("data/chartqa/test_human.jsonl", "data/chartqa/ChartQA Dataset/test/png", "line"),
    "chartqa_augmented": Lines("data/chartqa/test_augmented.jsonl", "data/chartqa/ChartQA Dataset/test/png", "line"),
    "docvqa_val": Lines(
        "data/docvqa/val.jsonl", "data/docvqa/val/documents", "documents data/docvqa/val/val_v1.0.json"
    ),
    "docvqa_test": Lines("data/docvqa/test.jsonl", "data/docvqa/test/documents"),
    "infovqa_val": Lines(
        "data/infographicsvqa/val.jsonl",
        "data/infographicsvqa/infographicsvqa_images",
        "documents data/infographicsvqa/infographicsVQA_val_v1.0_withQT.json",
    ),
    "infovqa_test": Lines("data/infographicsvqa/test.jsonl", "data/infographicsvqa/infographicsvqa_images"),
    "ai2d": Lines("data/ai2diagram/test_vlmevalkit.jsonl", "data/ai2diagram/AI2D_TEST", "line", "path"),
    "ocrvqa_val": Lines("data/ocrvqa/ocrvqa_val.jsonl", "data/ocrvqa/images", "line", "path"),
    "ocrvqa_test": Lines("data/ocrvqa/ocrvqa_test.jsonl", "data/ocrvqa/images", "line", "path"),
    "gqa_testdev": Lines(
        "data/gqa/testdev_balanced.jsonl", "data/gqa/images", "gqa data/gqa/testdev_balanced_questions.json"
    ),
    "gqa_testdev_llava": Lines(
        "data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
        "data/gqa/images",
        "gqa data/gqa/testdev_balanced_questions.json",
    ),
    "vqav2_val": Lines(
        "data/vqav2/vqav2_val.jsonl", "data/vqav2/val2014", "votes data/vqav2/v2_mscoco_val2014_annotations.json"
    ),
    "vqav2_testdev": Lines("data/vqav2/vqav2_testdev.jsonl", "data/vqav2/test2015"),
    "okvqa_val": Lines(
        "data/okvqa/okvqa_val.jsonl", "data/okvqa/val2014", "votes data/okvqa/mscoco_val2014_annotations.json"
    ),
    "textvqa_val": Lines(
        "data/textvqa/textvqa_val.jsonl",
        "data/textvqa/train_images",
        "votes data/textvqa/textvqa_val_annotations.json",
    ),
    "textvqa_val_ocr": Lines(
        "data/textvqa/textvqa_val_llava.jsonl",
        "data/textvqa/train_images",
        "votes data/textvqa/textvqa_val_annotations.json",
    ),
    "vizwiz_val": Lines(
        "data/vizwiz/vizwiz_val.jsonl", "data/vizwiz/val", "votes data/vizwiz/vizwiz_val_annotations.json"
    ),
    "vizwiz_test": Lines("data/vizwiz/vizwiz_test.jsonl", "data/vizwiz/test", id="path"),
}


def _single_image(make: Maker) -> None:
    spec = SINGLE_IMAGE[make.name]
    rows: list[dict[str, Any]] = []
    truths: list[str] = []
    # Benchmarks that share a folder of images draw the same ones.
    shared = make.named(spec.images)
    for number in range(make.questions):
        path = f"{spec.images}/{number:03d}.png"
        drawn = shared.picture(path)
        question, answer = f"What colour is the {drawn.shape}?", drawn.colour
        if make.name == "ai2d":
            options = shared.choices(answer)
            lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
            question = "\n".join([question, *lines, _ASK_OPTIONS])
            answer = _LETTERS[options.index(answer)]
        rows.append({"image": path, "question": question, "question_id": path if spec.id == "path" else 1000 + number})
        truths.append(answer)
    kind, _, path = spec.answers.partition(" ")
    ids = [row["question_id"] for row in rows]
    if kind == "line":
        rows = [{**row, "answer": answer} for row, answer in zip(rows, truths, strict=True)]
    elif kind == "documents":
        make.json(path, _document_file(rows, truths, "infographics" in path))
    elif kind == "votes":
        votes = [[answer] * 8 + ["unanswerable", "a shape"] for answer in truths]
        make.json(path, {"annotations": [_voted(key, voted) for key, voted in zip(ids, votes, strict=True)]})
    elif kind == "gqa":
        make.json(path, {str(key): {"answer": answer} for key, answer in zip(ids, truths, strict=True)})
    make.lines(spec.file, rows)


def _document_file(rows: Sequence[Mapping[str, Any]], truths: Sequence[str], types: bool) -> dict[str, Any]:
    groups = {"answer_type": ["single span"], "evidence": ["Figure"], "operation/reasoning": []} if types else {}
    data = [
        {"questionId": row["question_id"], "question": row["question"], "answers": [answer, f"{answer} one"], **groups}
        for row, answer in zip(rows, truths, strict=True)
    ]
    return {"dataset_name": "made up", "dataset_version": "1.0", "dataset_split": "val", "data": data}


def _voted(key: Any, answers: Sequence[str]) -> dict[str, Any]:
    return {
        "question_id": key,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
    }


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
            seen = shape if number else next(other for other in _SHAPES if other != shape)
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
                answer = "B" if number == 2 else _LETTERS[options.index(drawn[0].colour)]
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
        key, answer = f"v{number}" if kind >= 10 else str(100 + number), _LETTERS[options.index(drawn.colour)]
        question = f"What colour is the {drawn.shape}?"
        lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
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


_MVBENCH = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
_CLIPS = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")


def _mvbench(make: Maker) -> None:
    root = "dataset/benchmark/MVBench"
    for folder in dict.fromkeys(_MVBENCH.values()):
        if folder.startswith("tvqa"):
            for number in range(1, 31):
                make.picture(f"{root}/video/{folder}/scene/{number:05d}.jpg")
        else:
            make.video(f"{root}/video/{folder}/clip.mp4")
    for task, folder in _MVBENCH.items():
        rows = []
        for number in range(2):
            candidates = make.choices("red", 3)
            clip = {"start": 0.5 + number, "end": 2.5 + number} if task in _CLIPS else {}
            video = "scene" if folder.startswith("tvqa") else "clip.mp4"
            question = f"Which colour comes first in {task.replace('_', ' ')} {number}?"
            rows.append({"video": video, "question": question, "candidates": candidates, "answer": "red", **clip})
        make.json(f"{root}/json/{task}.json", rows)


def _videomme(make: Maker) -> None:
    rows = []
    for number, duration in enumerate(("short", "medium", "long")):
        make.video(f"data/Video-MME/data/clip{number}.mp4", frames=20 + 10 * number)
        options = make.choices("red")
        rows.append(
            {
                "video_id": f"{number:03d}",
                "duration": duration,
                "domain": "Knowledge",
                "videoID": f"clip{number}",
                "question_id": f"{number:03d}-1",
                "task_type": "Attribute Perception",
                "question": "Which colour comes first?",
                "options": [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)],
                "answer": "ABCD"[options.index("red")],
            }
        )
    if make.parquet:
        make.table("data/Video-MME/videomme/test-00000-of-00001.parquet", rows)
    else:
        make.lines("data/Video-MME/videomme/test.jsonl", rows)


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


_WRITERS: dict[str, Callable[[Maker], None]] = {
    **dict.fromkeys(SINGLE_IMAGE, _single_image),
    **dict.fromkeys(_MMBENCH, _mmbench),
    **dict.fromkeys(("mmmu_dev", "mmmu_val", "mmmu_test"), _mmmu),
    "scienceqa": _scienceqa,
    "pope": _pope,
    "seed": _seed,
    "mvbench": _mvbench,
    "videomme": _videomme,
}
"""By name."""
_FAMILIES: tuple[tuple[str, Callable[[Maker], None]], ...] = (
    ("mmniah_long_", _mmniah_long),
    ("mmniah_", _mmniah),
    ("milebench_", _milebench),
    ("longvqa_", _longvqa),
)
"""By how a name begins."""


def write_benchmark(root: Path, name: str, seed: int = 0, questions: int = 4, parquet: bool | None = None) -> None:
    """Write a small set in a benchmark's format.

    Args:
        root: folder the published paths are relative to.
        name: of a benchmark, as the registry has it.
        seed: of all draws.
        questions: of a file, 3 to 5; some benchmarks have a number of their own.
        parquet: write Parquet where that is the published form; None: if PyArrow is installed.

    Raises:
        DataError: no set of that name can be made, or a video is to be written without PyAV.
    """
    writer = _WRITERS.get(name) or next((made for begin, made in _FAMILIES if name.startswith(begin)), None)
    if writer is None:
        raise DataError(f"{name}: there is no made-up set of this benchmark")
    if not 3 <= questions <= 5:
        raise DataError(f"{questions} questions: expected 3 to 5")
    if parquet is None:
        parquet = importlib.util.find_spec("pyarrow") is not None
    writer(Maker(root, seed, name, questions, parquet))
