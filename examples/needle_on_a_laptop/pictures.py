"""The pictures: scans of handwritten digits and crops of two photographs, all out of scikit-learn's wheel.

Digits 0 .. 1396 of `load_digits`, shuffled, are for training, the other 400 for testing; of the photographs the left
three quarters are for training, the right quarter for testing. Nothing is downloaded, and no picture is in both.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from task import LONGEST_PAGE, TILE, Pictures

TRAINING_DIGITS = 1397
PAGES = {"train": 480, "test": 240}
"""Pages of each split, equally many of each number of tiles."""
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
TRAINING_SHARE = 0.75
"""Share of a photograph's width that training pictures are cut from."""
SEED = 0
SPLITS = ("train", "test")


def digits(split: str) -> list[tuple[np.ndarray, int]]:
    """Return the digits of a split: uint8 [8, 8] and which digit it is."""
    data: Any = load_digits()
    order = list(range(len(data.target)))
    random.Random(SEED).shuffle(order)
    chosen = order[:TRAINING_DIGITS] if split == "train" else order[TRAINING_DIGITS:]
    return [((data.images[number] * 255 // 16).astype(np.uint8), int(data.target[number])) for number in chosen]


def crops(split: str) -> np.ndarray:
    """Return all tiles of a split's part of the photographs, grey: uint8 [tiles, 8, 8]."""
    parts = []
    for name in PHOTOGRAPHS:
        grey = np.asarray(load_sample_image(name)).mean(axis=2).astype(np.uint8)
        border = int(grey.shape[1] * TRAINING_SHARE)
        part = grey[:, :border] if split == "train" else grey[:, border:]
        rows, columns = part.shape[0] // TILE, part.shape[1] // TILE
        part = part[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE)
        parts.append(part.transpose(0, 2, 1, 3).reshape(-1, TILE, TILE))
    return np.concatenate(parts)


def write(folder: Path) -> None:
    """Write the pictures of both splits as PNG files; a page is a strip of tiles."""
    for split in SPLITS:
        for kind in ("digits", "pages"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number, (pixels, digit) in enumerate(digits(split)):
            _save(pixels, folder / "digits" / split / f"{number:04d}_{digit}.png")
        draw, tiles = np.random.default_rng(SEED), crops(split)
        for number in range(PAGES[split]):
            chosen = tiles[draw.integers(len(tiles), size=number % LONGEST_PAGE + 1)]
            _save(np.concatenate(chosen, axis=1), folder / "pages" / split / f"{number:04d}_{len(chosen)}.png")


def read(folder: Path, split: str) -> Pictures:
    """Return the paths `write` wrote, relative to `folder`."""
    pages: list[list[str]] = [[] for _ in range(LONGEST_PAGE + 1)]
    for path in sorted((folder / "pages" / split).iterdir()):
        pages[_label(path)].append(str(path.relative_to(folder)))
    written = sorted((folder / "digits" / split).iterdir())
    return Pictures([(str(path.relative_to(folder)), _label(path)) for path in written], pages)


def _label(path: Path) -> int:
    return int(path.stem.split("_")[1])


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).convert("RGB").save(path, compress_level=1)
