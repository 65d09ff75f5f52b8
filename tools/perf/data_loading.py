"""How fast packs are read for training, beside the bare cost of decoding, resizing and normalising their images.

Bare: the same images through Pillow (open, RGB, resize, cut) and normalised, in as many processes, nothing else.
Plain: a PyTorch data set that tokenises and tiles a sample whenever asked, as the reference does. The wait of a
training step is measured with a consumer that computes for as long per pack as reading one takes on a core, times
`--slack`, beside one reading process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.indexed.build import BuildOptions, build
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.loader import PackLoader, build_loader
from megatron_v2pe.data.types import Picture
from megatron_v2pe.kernels.tiles import normalise_tiles
from perf._corpus import FACTS, Corpus, write_corpus
from perf.data_build import Plain

DESCRIPTION = "tiles a second of the training loader beside bare image work; how long a training step waits for data"
MEAN, STD = NORMALISATION["imagenet"]
SIDE = FACTS.tile_size


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py data_loading", description=DESCRIPTION)
    parser.add_argument("--samples", type=int, default=400, help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=200, help="distinct ones (default: %(default)s)")
    parser.add_argument("--packs", type=int, default=8, help="read in each run (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="0: one process (default: 0 2)")
    parser.add_argument("--images", nargs="+", default=["reference", "embed"], help="(default: reference embed)")
    parser.add_argument("--slack", type=float, default=1.3, help="of the step that waits (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        corpus = write_corpus(Path(name) / "corpus", arguments.samples, arguments.pictures)
        for images in arguments.images:
            folder = Path(name) / images
            build(read_data_list(corpus.meta), corpus.encoder, BuildOptions(str(folder), 0, images), {})
            packs = _pictures_of(corpus, folder, arguments.packs)
            tiles = sum(picture.num_tiles for pack in packs for picture in pack)
            for workers in arguments.workers:
                bare, ours, plain = [], [], []
                for _ in range(arguments.repeats):
                    bare.append(_seconds(_batches(Bare(packs), workers), arguments.packs))
                    ours.append(_seconds(_normalised(_loader(corpus, folder, workers)), arguments.packs))
                    plain.append(_plain(corpus, workers))
                rows.append(
                    {
                        "images": images,
                        "workers": workers,
                        "bare tiles/s": round(tiles / min(bare), 1),
                        "ours tiles/s": round(tiles / min(ours), 1),
                        "ratio": round(min(bare) / min(ours), 3),
                        "plain tiles/s": round(max(plain), 1),
                    }
                )
        wait = _wait(corpus, Path(name) / arguments.images[0], arguments.packs, arguments.slack)
    return {"packs": arguments.packs, "tiles": tiles, **wait, "rows": rows}


class Bare(Dataset[torch.Tensor]):
    """Packs as nothing but their images' tiles."""

    def __init__(self, packs: list[list[Picture]]) -> None:
        """Take the pictures of each pack."""
        self.packs = packs

    def __len__(self) -> int:
        """Return the number of packs."""
        return len(self.packs)

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return the tiles of a pack."""
        tiles: list[np.ndarray] = []
        for picture in self.packs[number]:
            with Image.open(picture.path) as file:  # noqa: TID251  the bare cost
                image = file.convert("RGB")
            columns, rows = picture.grid or (1, 1)
            whole = image.resize((SIDE * columns, SIDE * rows), Image.Resampling.BICUBIC)
            corners = [(SIDE * column, SIDE * row) for row in range(rows) for column in range(columns)]
            tiles += [np.asarray(whole.crop((x, y, x + SIDE, y + SIDE))) for x, y in corners]
            if picture.thumbnail:
                tiles.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
        return torch.from_numpy(np.stack(tiles))


def _batches(dataset: Dataset[torch.Tensor], workers: int) -> Iterable[torch.Tensor]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return (normalise_tiles(tiles, MEAN, STD) for tiles in loader)


def _normalised(loader: PackLoader) -> Iterable[torch.Tensor]:
    return (normalise_tiles(batch.tiles, MEAN, STD) for batch in loader)


def _loader(corpus: Corpus, folder: Path, workers: int) -> PackLoader:
    config = replace(corpus.encoder.config, indexed_path=str(folder), num_workers=workers)
    encoder = corpus.encoder
    return build_loader(
        config, encoder.tokenizer, encoder.facts, encoder.policy, seed=encoder.seed, dp_rank=0, dp_size=1
    )


def _pictures_of(corpus: Corpus, folder: Path, packs: int) -> list[list[Picture]]:
    samples = IndexedSamples(folder)
    plan = IndexedPlan(samples, corpus.encoder.config, corpus.encoder.seed, SkipLog(0))
    return [
        [item for sample in pack.samples for item in samples[sample].media if isinstance(item, Picture)]
        for pack in islice(plan.epoch(0), packs)
    ]


def _seconds(batches: Iterable[torch.Tensor], count: int) -> float:
    began = time.perf_counter()
    assert sum(1 for _ in islice(batches, count)) == count
    return time.perf_counter() - began


def _plain(corpus: Corpus, workers: int) -> float:
    """Return tiles a second of the plain data set; it reads samples in the order of the file."""
    loader = iter(DataLoader(Plain(corpus), batch_size=None, num_workers=workers))
    began = time.perf_counter()
    tiles = sum(sample["pixel_values"].shape[0] for sample in islice(loader, 60))
    return tiles / (time.perf_counter() - began)


def _wait(corpus: Corpus, folder: Path, packs: int, slack: float) -> dict[str, Any]:
    alone = _seconds(_normalised(_loader(corpus, folder, 0)), packs) / packs
    waits, batches = [], iter(_loader(corpus, folder, 1))
    numbers = torch.randn(512, 512)
    for _ in range(packs):
        began = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - began)
        while time.perf_counter() - began - waits[-1] < slack * alone:
            torch.mm(numbers, numbers)
    later = waits[2:]
    return {
        "step s": round(slack * alone, 3),
        "wait for a pack s": round(sum(later) / len(later), 4),
        "share of the step": f"{sum(later) / len(later) / (slack * alone):.2%}, after the first two",
    }
