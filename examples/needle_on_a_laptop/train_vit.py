"""Teach the vision tower digits and photographs before any language model sees its features.

A linear layer on every patch token says what the tile is: one of ten digits, or a photograph. So each token comes to
hold what its tile shows. The linear layer is thrown away; what it reads on digits never seen is the ceiling of all that
follows. Digits are moved a little and made noisy, for there are only 1,397 to learn from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pictures
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.checkpoint.hf.random_weights import write_checkpoint
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.generate.pretrained import open_pretrained
from megatron_v2pe.kernels.tiles import normalise_tiles
from megatron_v2pe.workshop.full_state import gather_full

PHOTOGRAPH = 10
"""The class after the ten digits."""
BATCH = 128
LEARNING_RATE = 2e-3
VARIANTS = 8
"""Copies of each training digit, each moved at random."""
NOISE = 0.2
"""Standard deviation, of normalised pixels."""


def train(megatron: Path, hf: Path, steps: int, seed: int) -> float:
    """Train the tower of a checkpoint and write it back into the HF folder.

    Args:
        megatron: the checkpoint, converted.
        hf: the same checkpoint in the HF layout; its weights are replaced.
        steps: of `BATCH` tiles.
        seed: of the draws.

    Returns:
        Share of the test digits that are read right.
    """
    torch.manual_seed(seed)
    with open_pretrained(megatron, device="cpu") as pretrained:
        model = pretrained.engine.model
        tower = model.vision_model
        assert tower is not None
        head = nn.Linear(pretrained.config.vision.hidden_size, PHOTOGRAPH + 1)
        learned = [*tower.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(learned, LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
        batches = _batches(seed)
        with progress_bar(total=steps, desc="vision tower", unit="steps") as bar:
            for _ in range(steps):
                tiles, classes = next(batches)
                logits = head(tower(tiles)[:, 1:])
                loss = F.cross_entropy(logits.flatten(0, 1), classes.repeat_interleave(logits.shape[1]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
                bar.update()
        ceiling = _read_right(tower, head)
        full = gather_full(model, lambda parameter: parameter.detach())
        tensors = mapping_table(pretrained.config).tensors
        weights = {mapping.name: mapping.to_hf(partial(_rows, full[mapping.key])).contiguous() for mapping in tensors}
    write_checkpoint(hf, json.loads((hf / "config.json").read_text(encoding="utf-8")), weights)
    return ceiling


def _rows(tensor: Tensor, first_row: int, rows: int) -> Tensor:
    return tensor[first_row : first_row + rows]


def _tiles(grey: np.ndarray) -> Tensor:
    """Return tiles as the tower is given them: [tiles, 3, 8, 8], normalised."""
    colour = torch.from_numpy(np.repeat(grey[..., None], 3, axis=-1))
    return normalise_tiles(colour, *NORMALISATION["imagenet"])


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tiles and classes without end: three digits to a photograph."""
    draw = np.random.default_rng(seed)
    digits, crops = pictures.digits("train"), pictures.crops("train")
    pixels = np.stack([_moved(image, draw) for image, _ in digits for _ in range(VARIANTS)])
    classes = np.repeat([digit for _, digit in digits], VARIANTS)
    while True:
        chosen = draw.integers(len(pixels), size=BATCH * 3 // 4)
        photographs = crops[draw.integers(len(crops), size=BATCH // 4)]
        labels = np.concatenate([classes[chosen], np.full(len(photographs), PHOTOGRAPH)])
        grey = np.concatenate([pixels[chosen], photographs])
        tiles = _tiles(grey)
        noise = torch.from_numpy(draw.normal(0, NOISE, size=tiles.shape).astype(np.float32))
        yield tiles + noise, torch.from_numpy(labels)


def _moved(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Turn, shear, stretch and shift a digit a little."""
    (a, b), (c, d) = np.eye(2) + draw.uniform(-0.15, 0.15, size=(2, 2))
    middle, (x, y) = (len(pixels) - 1) / 2, draw.uniform(-0.5, 0.5, size=2)
    offset = (x + middle - a * middle - b * middle, y + middle - c * middle - d * middle)
    matrix = (a, b, offset[0], c, d, offset[1])
    image = Image.fromarray(pixels).transform(pixels.shape, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(image)


@torch.no_grad()
def _read_right(tower: nn.Module, head: nn.Module) -> float:
    """Return the share of the test digits the mean of a tile's tokens says right."""
    digits = pictures.digits("test")
    logits = head(tower(_tiles(np.stack([image for image, _ in digits])))[:, 1:]).mean(1)
    right = logits.argmax(-1) == torch.tensor([digit for _, digit in digits])
    return right.double().mean().item()
