"""Which files of a folder are the frames of a video, and in which order: by number, as people and cameras count.

Frames are the files whose names end as an image's do, and those of another name whose content is an image. Left out and
counted are hidden files (`.DS_Store`, `._1.jpg`), what is no image (`Thumbs.db`, `times.txt`) and folders. A name that
is an image's and leads nowhere (a broken link, a pipe) is refused: a frame is missing there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from torch.utils.data import get_worker_info

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.image_transform import opened_image
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .pfm .jp2 .j2k .jpx "
    ".jpf .avif .avifs .tga .ico".split()
)
"""What names of images end in, in small letters."""
_DIGITS = re.compile(r"([0-9]+)")
_log = get_logger(__name__)
_told = set[str]()
"""What this process has warned of."""


@dataclass(frozen=True)
class FrameFolder:
    """What is in a folder of frames."""

    frames: tuple[str, ...]
    """Paths, in order."""
    left_out: tuple[str, ...]
    """Names of what is no frame, in order."""


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return what names are ordered by: digits as numbers, other characters whatever their case, then the name itself.

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
        DataError: as of `look_into`, or no frame in it.
    """
    found = look_into(folder)
    if not found.frames:
        raise DataError(f"{printable(folder)}: no frames in the folder{_besides(found.left_out)}")
    if found.left_out and not _told and ((reader := get_worker_info()) is None or reader.id == 0):
        _told.add("files that are no frames")
        _log.warning(
            "%s: %d frames%s; other folders with such files are not named, tools/check_data.py --full counts them",
            *(printable(folder), len(found.frames), _besides(found.left_out)),
        )
    return list(found.frames)


def _besides(names: tuple[str, ...]) -> str:
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
