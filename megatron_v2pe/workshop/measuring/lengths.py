"""Lengths of documents to plan packs from: read from a CSV file, or drawn from a model of the published 32K mixture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from megatron_v2pe.errors import DataError

TOKENS_PER_TILE = 256

# Share of the documents, distribution of their tokens, least and greatest share of image tokens.
_FAMILIES: dict[str, tuple[float, tuple[str, float, float], tuple[float, float]]] = {
    "long_vqa": (0.363, ("uniform", 16200, 32800), (0.55, 0.95)),
    "long_mr": (0.309, ("uniform", 16200, 32800), (0.10, 0.60)),
    "milebench": (0.278, ("log-normal", 5800, 0.81), (0.69, 0.97)),
    "nh": (0.041, ("uniform", 1000, 16300), (0.0, 0.95)),
    "gpr": (0.009, ("log-normal", 1350, 0.33), (0.76, 0.95)),
}

Lengths = tuple[np.ndarray, np.ndarray]
"""Tokens and tiles of each document, both int64 [n]."""


def read_lengths(path: Path) -> Lengths:
    """Read the columns `tokens` and `tiles` of a CSV file with a heading; lines that begin with # are remarks.

    Raises:
        DataError: a column is missing, or a value is no whole number.
    """
    with path.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        missing = {"tokens", "tiles"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(f"{path}: no column {' and no column '.join(sorted(missing))}")
        try:
            values = [(int(row["tokens"]), int(row["tiles"])) for row in rows]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: {error}") from error
    tokens, tiles = np.array(values, dtype=np.int64).reshape(-1, 2).T
    return tokens, tiles


def drawn_lengths(count: int, seed: int, longest: int = 33000) -> Lengths:
    """Draw lengths from a model of the published 32K mixture.

    Two thirds are long image questions and references of 16K to 33K tokens, evenly spread; most others are of the
    MileBench sets, log-normal around 5,800 tokens; the rest are needles (1K to 16K) and general dialogue, log-normal
    around 1,350. A share of the tokens that is uniform within each family is images, 256 tokens a tile.

    Args:
        count: documents.
        seed: of the draws.
        longest: of a document in tokens; longer ones are drawn as long as this.
    """
    generator = np.random.default_rng(seed)
    shares = np.array([share for share, _, _ in _FAMILIES.values()])
    family = generator.choice(len(shares), size=count, p=shares / shares.sum())
    tokens, tiles = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for index, (_, (kind, first, second), visual) in enumerate(_FAMILIES.values()):
        members = np.flatnonzero(family == index)
        size = len(members)
        uniform = kind == "uniform"
        draws = generator.uniform(first, second, size) if uniform else generator.lognormal(np.log(first), second, size)
        tokens[members] = np.clip(draws, 64, longest)
        tiles[members] = tokens[members] * generator.uniform(*visual, size) // TOKENS_PER_TILE
    return tokens, tiles
