"""Which frames of a video are shown: the middles of as many equal parts, as MVBench's evaluator samples them.

Of a folder of frames the published evaluator takes the number of files for the last frame and opens frames by number
(`00042.jpg`): no order of names is asked. Here hidden files and what is no image (`.DS_Store`) do not count as frames.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_v2pe.data import video
from megatron_v2pe.data.video import list_frames
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import ImageRef

SEGMENTS = 16
"""Frames of a video (`--num_segments`)."""
FOLDER_RATE = 3.0
"""Frames per second of a folder of frames; their names count from 00001.jpg."""

Bounds = tuple[float, float]
"""First and last second."""


def sample_frames(rate: float, first: int, last: int, bounds: Bounds | None, segments: int = SEGMENTS) -> list[int]:
    """Return the middle frame of each of equal parts of a video, or of a clip of it.

    Args:
        rate: frames per second.
        first: number of the first frame there is.
        last: number of the last.
        bounds: of the clip in seconds.
        segments: how many.

    Raises:
        DataError: the clip is outside of the video.
    """
    start, end = first, last
    if bounds is not None:
        start, end = max(first, round(bounds[0] * rate)), min(round(bounds[1] * rate), last)
    if start > end:
        raise DataError(f"clip {bounds} s is outside of frames {first} to {last} at {rate:g} per second")
    part = (end - start) / segments
    return [int(start + part / 2 + round(part * number)) for number in range(segments)]


def video_images(path: Path, bounds: Bounds | None) -> tuple[ImageRef, ...]:
    """Return frames of a video file, or of a folder of frames.

    Raises:
        DataError: it is missing, damaged, or shorter than the clip.
    """
    try:
        if path.is_dir():
            number = len(list_frames(str(path)))
            frames = sample_frames(FOLDER_RATE, 1, number, bounds)
            return tuple(ImageRef(os.path.join(path, f"{frame:05d}.jpg")) for frame in frames)
        length, rate = video.length_and_rate(str(path))
        return tuple(ImageRef(str(path), frame) for frame in sample_frames(rate, 0, length - 1, bounds))
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def frame_lines(number: int) -> str:
    """Return the lines that place the frames: `Frame1: <image>`, ..."""
    return "\n".join(f"Frame{frame}: <image>" for frame in range(1, number + 1))
