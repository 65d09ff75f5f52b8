"""The folders of V2PE-Data under `dataset/`, as its authors ask to arrange them, and which of them are there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE = "https://huggingface.co/datasets/OpenGVLab/V2PE-Data"
"""Where all of it is downloaded from."""

_ANNOTATION = ("long_mr_128k", "long_mr_256k", "long_mr_32k", "long_vqa_32k", "milebench_16k", "milebench_nh")
_VAL = (
    *("long_mr_128k", "long_mr_1m", "long_mr_256k", "long_mr_512k"),
    *("long_vqa_32k", "long_vqa_40k", "long_vqa_48k", "long_vqa_56k", "long_vqa_64k"),
)
LONG_VQA_IMAGE = ("deepform", "docvqa", "infovqa", "kleistercharity", "svqa", "visualmrc")
"""Tasks of Long-VQA whose images stand by themselves."""
LONG_VQA_PASTE = (
    *("chartqa", "clevr", "dvqa", "gqa", "ocrvqa", "okvqa", "tabfact", "textcaps", "textvqa", "vizwiz"),
    "wikitablequestions",
)
"""Tasks of Long-VQA whose images are pasted together."""
MILEBENCH = (
    *("clevr", "gpr", "iedit", "mmcoqa", "mmqa", "nh", "objintercn", "ocrvqa", "percept", "slidevqa", "spotdiff"),
    *("sta_charades", "star", "tqa", "webqa"),
)
"""Tasks of MileBench; training images alone are published."""

FOLDERS = (
    *(f"annotation/{name}" for name in _ANNOTATION),
    *(f"image/long_mr/{split}" for split in ("train", "val")),
    *(f"image/long_vqa/image/{task}/{split}" for task in LONG_VQA_IMAGE for split in ("train", "val")),
    *(f"image/long_vqa/paste/{task}/{split}" for task in LONG_VQA_PASTE for split in ("train", "val")),
    *(f"image/milebench/{task}/train" for task in MILEBENCH),
    *(f"val/{name}" for name in _VAL),
)
"""All folders, relative to `dataset/`."""

_KNOWN = frozenset(FOLDERS)


@dataclass(frozen=True)
class FolderState:
    """One published folder on this machine."""

    folder: str
    """Path relative to the root."""
    state: Literal["there", "empty", "missing"]


def look_for_folders(root: str | Path) -> list[FolderState]:
    """Return the state of every published folder below `root` (the published `dataset/`), in the published order."""
    return [FolderState(folder, _state(Path(root) / folder)) for folder in FOLDERS]


def published_folder(folder: str) -> str | None:
    """Return the published folder a folder is or lies in, with what stands before it; None: not part of V2PE-Data.

    Example: `dataset/image/long_mr/train/0` lies in `dataset/image/long_mr/train`.
    """
    parts = folder.split("/")
    for begin in range(len(parts)):
        for end in range(len(parts), begin, -1):
            if "/".join(parts[begin:end]) in _KNOWN:
                return "/".join(parts[:end])
    return None


def _state(folder: Path) -> Literal["there", "empty", "missing"]:
    try:
        with os.scandir(folder) as entries:
            return "there" if next(entries, None) is not None else "empty"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
