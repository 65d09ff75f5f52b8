"""MVBench and Video-MME: which frames, which words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.opened_images import open_images
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.families.videos.frames import sample_frames, video_images
from megatron_v2pe.workshop.synthetic.benchmarks import Maker, write_benchmark

INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)


def by_the_document(rate: float, first: int, last: int, bounds: tuple[float, float] | None) -> list[int]:
    """Section 7.8: start, end, seg, index_k = int(start + seg/2 + round(seg*k))."""
    begin, finish = bounds or (-100000, 100000)
    start, end = max(first, round(begin * rate)), min(round(finish * rate), last)
    seg = float(end - start) / 16
    return [int(start + seg / 2 + np.round(seg * k)) for k in range(16)]


@pytest.mark.parametrize("last", [0, 1, 7, 15, 16, 39, 310, 4999])
@pytest.mark.parametrize("bounds", [None, (0.0, 0.5), (1.2, 7.9), (0.04, 0.1), (0.0, 500.0)])
def test_frames_are_those_of_the_document(last, bounds):
    for rate, first in ((30.0, 0), (23.976, 0), (3.0, 1)):
        try:
            frames = sample_frames(rate, first, last, bounds)
        except DataError:
            assert bounds is not None or first > last
            continue
        assert frames == by_the_document(rate, first, last, bounds)
        assert all(first <= frame <= last for frame in frames)


def test_literal_frames():
    assert sample_frames(10, 0, 39, None) == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 25, 28, 30, 33, 35, 38]
    assert sample_frames(10, 0, 39, (1.0, 2.6)) == list(range(10, 26))
    assert sample_frames(3, 1, 30, (0.5, 2.5)) == [2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 8]


def test_a_clip_outside_of_its_video_is_refused(tmp_path):
    Maker(tmp_path, 0, "clip", 4, parquet=False).video("clip.mp4")
    with pytest.raises(DataError, match=r"clip.mp4: clip \(5.0, 6.0\) s is outside of frames 0 to 39 at 10"):
        video_images(tmp_path / "clip.mp4", (5.0, 6.0))
    with pytest.raises(DataError, match="no such video"):
        video_images(tmp_path / "none.mp4", None)


def test_mvbench(tmp_path):
    write_benchmark(tmp_path, "mvbench")
    questions = list(create("mvbench").questions(tmp_path))
    bounded = questions[0]
    assert bounded.id == "action_sequence-0"
    lines = bounded.turns[0][1].split("\n")
    assert lines[0] == "Frame1: <image>" and lines[15] == "Frame16: <image>"
    source = json.loads((tmp_path / "dataset/benchmark/MVBench/json/action_sequence.json").read_text())[0]
    a, b, c = source["candidates"]
    assert "\n".join(lines[16:]) == (
        f"{INSTRUCTION}\nQuestion: {source['question']}\nOptions:\n(A) {a}\n(B) {b}\n(C) {c}"
        "\nOnly give the best option."
    )
    assert bounded.facts["answer"] == f"({'ABC'[source['candidates'].index('red')]}) red"
    assert [image.frame for image in bounded.images] == sample_frames(10, 0, 39, (0.5, 2.5))
    frames = next(question for question in questions if question.id == "episodic_reasoning-0")
    assert [Path(image.path).name for image in frames.images] == [
        f"{frame:05d}.jpg" for frame in sample_frames(3, 1, 30, (0.5, 2.5))
    ]
    assert {image.size for image in open_images(bounded.images)} == {(64, 48)}


def test_mvbench_refuses_an_answer_that_is_no_candidate(tmp_path):
    write_benchmark(tmp_path, "mvbench")
    path = tmp_path / "dataset/benchmark/MVBench/json/moving_count.json"
    path.write_text(path.read_text().replace('"answer": "red"', '"answer": "9"'))
    with pytest.raises(DataError, match=r"moving_count.json, record 0: the answer '9' is none of"):
        list(create("mvbench").questions(tmp_path))


def test_video_mme(tmp_path):
    write_benchmark(tmp_path, "videomme", parquet=False)
    question = next(create("videomme").questions(tmp_path))
    row = json.loads((tmp_path / "data/Video-MME/videomme/test.jsonl").read_text().splitlines()[0])
    assert question.turns[0][1].split("\n", 16)[16] == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nWhich colour comes first?\n"
        + "\n".join(row["options"])
        + "\nThe best answer is:"
    )
    assert len(question.images) == 16
