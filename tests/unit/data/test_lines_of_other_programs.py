"""Lines as other programs write them: read, left alone, or refused for what they are; nothing is trained on blindly."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.errors import DataError
from megatron_v2pe.workshop.checking.samples import SampleChecker

DATASET = Dataset("d", "a.jsonl", root="root")
SHOWN = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
TEXT = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]


def read(row):
    """Take a line through the steps of training up to its tokens."""
    sample = DATASET.parse(json.dumps(row).encode(), 1)
    if (problem := SampleChecker.of_text().problem(DATASET, sample)) is not None:
        raise DataError(problem)
    return sample


@pytest.mark.parametrize(
    "beside",
    [
        {"original_image": "x/full.png"},
        {"image_path_original": "x/full.png", "raw_image": "x/full.raw.png"},
        {"source_video": "film.mp4", "video_source": "film.mp4"},
        {"image_info": {"file_name": "COCO_train2014_000000000009.jpg", "width": 640}},
        {"image_mask": "m.png", "mask_path": "m.png"},
        {
            "source": "coco/train2017/x.jpg",
            "url": "http://h/x.jpg",
            "caption_file": "c.txt",
            "question_image_id": "x.jpg",
        },
        {"ocr": "a.jpg b.jpg", "objects": {"ref": ["dog"], "bbox": [[1, 2, 3, 4]]}},
    ],
)
def test_what_describes_a_picture_that_is_shown_is_left_alone(beside):
    assert read({"id": "x.jpg", "image": "a.png", "conversations": SHOWN, **beside}).images == ("root/a.png",)


@pytest.mark.parametrize(
    "beside",
    [
        {"title": "How to open file.jpg", "instruction": "Convert it to out.mp4"},
        {"path": "src/index.ts", "source": "https://h/a/b.ts", "repo": "a/b"},
        {"extension": ".mp4", "tags": ["png", "jpg"], "modality": "image"},
        {"audio": "none", "frame": "null", "sample_id": "x.jpg", "__key__": "0001.jpg"},
    ],
)
def test_text_that_only_speaks_of_files_is_text(beside):
    sample = read({"conversations": TEXT, **beside})
    assert not sample.images and sample.video is None


@pytest.mark.parametrize(
    "beside",
    [{"file": "my scans/page 1.png"}, {"x": "my scans/page 1.png"}, {"file_name": "page 1.png"}, {"jpg": "1.jpg"}],
)
def test_a_file_with_blanks_is_still_a_file(beside):
    with pytest.raises(DataError, match="looks like media"):
        read({"conversations": TEXT, **beside})


MARKS = [
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|image|>",
    "<|image_1|>",
    "<|video_pad|>",
    "<ImageHere>",
    "<image_placeholder>",
    "<image-placeholder>",
    "<start_of_image>",
]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("named", [{}, {"image": "a.png"}, {"images": ["a.png", "b.png"]}])
def test_marks_of_other_programs_are_no_words(mark, named):
    turns = [{"role": "user", "content": f"{mark}What is it?"}, {"role": "assistant", "content": "A cat."}]
    with pytest.raises(DataError, match=r"a question has <.*>, by which another program marks .*: write <image>"):
        read({"messages": turns, **named})


def test_such_marks_may_be_spoken_of():
    told = [TEXT[0], {"from": "gpt", "value": "Qwen marks an image by <|image_pad|>."}]
    assert read({"conversations": told}).conversations[1][1].endswith("<|image_pad|>.")
    asked = [{"from": "human", "value": "<image>\nIs <|image_pad|> in it?"}, SHOWN[1]]
    assert read({"image": "a.png", "conversations": asked}).images


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"conversations": [{"from": "human", "value": "<img>a.png</img>What?"}, SHOWN[1]]},
            "where it names an image, ",
        ),
        ({"video": "v.mp4", "conversations": SHOWN}, "the line names a video: write <video> where it belongs"),
        ({"clip": "v.mp4", "conversations": TEXT}, "the path of a video belongs into the field 'video'"),
        ({"images": ["a"], "texts": [{"user": "q", "assistant": "a"}]}, "'texts' are not read"),
        ({"conversations": [TEXT[0], {**TEXT[1], "loss_scale": 0.0}]}, "'loss_scale' says not to learn it"),
        ({"conversations": [TEXT[0], {**TEXT[1], "trainable": False}]}, "'trainable' says not to learn it"),
    ],
)
def test_refusals_say_what_to_write(row, told):
    with pytest.raises(DataError, match=told):
        read(row)
