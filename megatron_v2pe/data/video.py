"""Videos as frames: which frames are drawn, and reading them from animations and video files; folders: `frame_folder`.

Video files need PyAV (the `video` extra); folders of frames and GIFs do not.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from PIL import Image

from megatron_v2pe.data.decoding import decoding
from megatron_v2pe.data.frame_folder import list_frames
from megatron_v2pe.data.image_transform import open_image, opened_image
from megatron_v2pe.data.types import AS_PUBLISHED, Opening
from megatron_v2pe.errors import DataError, how_to_install
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.printable import printable

CONTAINERS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "m4v"),
    *("h264", "hevc", "av1", "ivf", "rm", "mxf", "gif"),
)
"""Formats of video files that are read. FFmpeg knows hundreds more; some are lists of other files and addresses."""
# `file:` before a name keeps FFmpeg from taking it for an address.
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}


def draw_frames(length: int, number: int, seed: int) -> list[int]:
    """Draw `number` frames of `length` in order, one from each of as many equal intervals.

    Intervals leave out their last frame; where one is left empty, a sorted random subset is taken instead. A video
    shorter than `number` is filled up by repeating its last frame drawn.
    """
    generator = np.random.default_rng(seed)
    distinct = min(number, length)
    borders = np.linspace(0, length, distinct + 1).astype(int)
    ends = borders[1:] - 1
    if (ends > borders[:-1]).all():
        chosen = [int(generator.integers(start, end)) for start, end in zip(borders[:-1], ends, strict=True)]
    else:
        chosen = sorted(int(frame) for frame in generator.permutation(length)[:distinct])
    return chosen + [chosen[-1]] * (number - distinct)


def frame_range(path: str, clip: tuple[float, float] | None) -> tuple[int, int]:
    """Return the first frame of a video file to use and the one after the last.

    Raises:
        DataError: no such file, not a video, PyAV missing, or a clip outside of the video.
    """
    length, rate = length_and_rate(path)
    if clip is None:
        return 0, length
    first, last = int(min(max(clip[0] * rate, 0), length)), round(min(clip[1] * rate, length))
    if first >= last:
        raise DataError(
            f"{printable(path)}: clip {clip[0]} to {clip[1]} s is outside of {length / rate:.2f} s ({length} frames)"
        )
    return first, last


def read_frames(path: str, frames: list[int], opening: Opening = AS_PUBLISHED) -> list[Image.Image]:
    """Return frames of a video file or animation as RGB, in the order asked for; `opening` is an animation's."""
    if path.lower().endswith(".gif"):
        return [open_image(path, frame, opening) for frame in frames]
    wanted, found = set(frames), dict[int, Image.Image]()
    with _container(path) as container, decoding(path, "damaged video"):
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found[number] = frame.to_image()
            if number >= max(wanted):
                break
    if missing := wanted - set(found):
        raise DataError(f"{printable(path)}: frame {min(missing)} could not be decoded")
    return [found[frame] for frame in frames]


def check_frames(path: str, opening: Opening = AS_PUBLISHED) -> None:
    """Read every frame of a video file, an animation or a folder of frames (ends with `/`), as training may.

    Raises:
        DataError: one is missing or damaged.
    """
    if path.endswith("/"):
        for frame in list_frames(path):
            open_image(frame, opening=opening)
        return
    length, _ = length_and_rate(path)
    if path.lower().endswith(".gif"):
        for frame in range(length):
            open_image(path, frame, opening)
        return
    number = 0
    with _container(path) as container, decoding(path, "damaged video"):
        for frame in container.decode(video=0):
            frame.to_image()
            number += 1
    if number < length:
        raise DataError(f"{printable(path)}: frame {number} of {length} could not be decoded")


def length_and_rate(path: str) -> tuple[int, float]:
    """Return frames and frames per second of a video file or animation.

    Raises:
        DataError: no such file, not a video, PyAV missing.
    """
    if path.lower().endswith(".gif"):
        with decoding(path, "damaged image"), opened_image(path) as image:
            return getattr(image, "n_frames", 1), 1000 / (image.info.get("duration") or 100)
    with _container(path) as container, decoding(path, "damaged video"):
        if not container.streams.video:
            raise DataError(f"{printable(path)}: no video stream")
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        length = stream.frames or sum(1 for _ in container.decode(video=0))
    if rate <= 0 or length <= 0:
        raise DataError(f"{printable(path)}: {length} frames at {rate} frames per second")
    return length, rate


def _container(path: str) -> Any:
    try:
        import av
    except ImportError:
        raise DataError(f"{printable(path)}: video files need PyAV: {how_to_install('video')}") from None
    if not os.path.exists(path):
        raise DataError(f"{printable(path)}: no such video")
    check_regular(path, DataError)
    with decoding(path, "not a video"):
        container = av.open(f"file:{path}", options=_OPTIONS)
        if container.streams.video and _release(av.__version__) < (18, 1):
            # Several threads on one damaged frame end the process with a segmentation fault; 18.1 does not.
            container.streams.video[0].codec_context.thread_count = 1
        return container


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
