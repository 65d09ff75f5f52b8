"""Videos as frames: which frames are drawn, and reading them from folders of frames, animations and video files.

Video files need PyAV (the `video` extra); folders of frames and GIFs do not.

The frames of a folder are the files whose names end as an image's do, and those of another name whose content is an
image. They are ordered by number, as people and cameras count. Left out and counted are hidden files (`.DS_Store`,
`._1.jpg`), what is no image (`Thumbs.db`, `times.txt`) and folders. A name that is an image's and leads nowhere (a
broken link, a pipe) is refused: a frame is missing there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import get_worker_info

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.image_files import decoding, open_image, opened_image
from megatron_v2pe.data.image_operations import Operations
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
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .pfm .jp2 .j2k .jpx "
    ".jpf .avif .avifs .tga .ico".split()
)
"""The endings of names of images, in small letters."""
_DIGITS = re.compile(r"([0-9]+)")
_log = get_logger(__name__)
_warned = set[str]()
"""What this process has warned of."""


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


def read_frames(path: str, frames: list[int], operations: Operations = ()) -> list[Image.Image]:
    """Return frames of a video file or animation as RGB, in the order asked for; `operations` concern animations."""
    if path.lower().endswith(".gif"):
        return [open_image(path, frame, operations) for frame in frames]
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


def check_frames(path: str, operations: Operations = ()) -> None:
    """Read every frame of a video file, an animation or a folder of frames (ends with `/`), as training may.

    Raises:
        DataError: one is missing or damaged.
    """
    if path.endswith("/"):
        for frame in list_frames(path):
            open_image(frame, operations=operations)
        return
    length, _ = length_and_rate(path)
    if path.lower().endswith(".gif"):
        for frame in range(length):
            open_image(path, frame, operations)
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


@dataclass(frozen=True)
class FrameFolder:
    """What is in a folder of frames."""

    frames: tuple[str, ...]
    """Paths, in order."""
    left_out: tuple[str, ...]
    """Names of what is no frame, in order."""


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return the key that orders names: digits as numbers, other characters whatever their case, then the name itself.

    So `clip_2.jpg` comes before `clip_10.jpg`, and of `f1.jpg` and `f01.jpg`, equal numbers, `f01.jpg` is the first.
    """
    stem, suffix = os.path.splitext(name)
    parts = _DIGITS.split(stem if suffix.lower() in SUFFIXES else name)
    return tuple(int(part) if number % 2 else part.casefold() for number, part in enumerate(parts)), name


def look_into(folder: str) -> FrameFolder:
    """Return the frames of a folder in natural order.

    Raises:
        DataError: no such folder, unreadable, or a frame that is no regular file.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{printable(folder)}: no such folder of frames")
    frames, others = list[str](), list[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (frames if _is_frame(entry) else others).append(entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read: {error}") from error
    frames.sort(key=natural_key)
    return FrameFolder(tuple(os.path.join(folder, name) for name in frames), tuple(sorted(others, key=natural_key)))


def list_frames(folder: str) -> list[str]:
    """Return the frames of a folder in natural order; what is left out is said once in a process.

    Raises:
        DataError: see `look_into`, or no frame in it.
    """
    found = look_into(folder)
    if not found.frames:
        raise DataError(f"{printable(folder)}: no frames in the folder{_left_out_words(found.left_out)}")
    if found.left_out and not _warned and ((reader := get_worker_info()) is None or reader.id == 0):
        _warned.add("files that are no frames")
        _log.warning(
            "%s: %d frames%s; other folders with such files are not named, tools/check_data.py --full counts them",
            *(printable(folder), len(found.frames), _left_out_words(found.left_out)),
        )
    return list(found.frames)


def _left_out_words(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    shown = ", ".join(printable(name)[:40] for name in names[:3])
    more = ", ..." if len(names) > 3 else ""
    return f", {len(names)} other file{'' if len(names) == 1 else 's'} left out ({shown}{more})"


def _is_frame(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.is_dir():
        return False
    if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
        if not entry.is_file():
            raise DataError(f"{printable(entry.path)}: not a regular file; a frame is missing")
        return True
    if not entry.is_file():
        return False
    try:
        opened_image(entry.path).close()
    except DataError:
        return False
    return True
