"""How fast an indexed data set is built, beside the bare cost of its parts and beside what the reference does.

Bare parts, on as many processes: JSON of every line, every file read once, its SHA-256, its header opened (or its
pixels decoded, as configured), SentencePiece over every text, ids (and embedded images) written. The reference has no
build; its row is a plain PyTorch data set that tokenises a sample and decodes and tiles its images whenever asked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.indexed.build import BuildOptions, build
from megatron_v2pe.kernels.tiles import normalise_tiles
from perf._corpus import Corpus, write_corpus

DESCRIPTION = "samples a second of tools/preprocess_data.py beside its bare parts and a plain PyTorch data set"
_ONLINE = 60
"""Samples the plain data set is measured on."""


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py data_build", description=DESCRIPTION)
    parser.add_argument("--samples", type=int, default=4000, help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=1200, help="distinct ones (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="0: one process (default: 0 2)")
    parser.add_argument("--images", nargs="+", default=["reference", "embed"], help="(default: reference embed)")
    parser.add_argument("--image-check", choices=("header", "full"), default="header", help="(default: header)")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts (default: %(default)s)")
    arguments = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        corpus = write_corpus(Path(name) / "corpus", arguments.samples, arguments.pictures)
        online = _online(corpus)
        for images in arguments.images:
            for workers in arguments.workers:
                bare, ours = [], []
                for _ in range(arguments.repeats):
                    bare.append(_bare(corpus, Path(name) / "bare", max(workers, 1), images, arguments.image_check))
                    ours.append(_build(corpus, Path(name) / "set", workers, images, arguments.image_check))
                rows.append(
                    {
                        "images": images,
                        "workers": workers,
                        "bare samples/s": round(arguments.samples / min(bare)),
                        "ours samples/s": round(arguments.samples / min(ours)),
                        "ratio": round(min(bare) / min(ours), 3),
                        "plain samples/s": round(online, 1),
                    }
                )
    return {"samples": arguments.samples, "files": arguments.pictures, "check": arguments.image_check, "rows": rows}


def _build(corpus: Corpus, out: Path, workers: int, images: Any, check: Any) -> float:
    began = time.perf_counter()
    options = BuildOptions(str(out), workers, images, check)
    build(read_data_list(corpus.meta), corpus.encoder, options, {})
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def _bare(corpus: Corpus, out: Path, processes: int, images: str, check: str) -> float:
    out.mkdir()
    root = corpus.meta.parent
    began = time.perf_counter()
    files = sorted((root / "image").iterdir())
    lines = (root / "all.jsonl").read_bytes().splitlines()
    parts = [
        (lines[part::processes], files[part::processes], corpus.encoder.tokenizer.model_file, out, part, images, check)
        for part in range(processes)
    ]
    if processes == 1:
        _bare_part(*parts[0])
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            pool.starmap(_bare_part, parts)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def _bare_part(
    lines: Sequence[bytes], files: Sequence[Path], model: str, out: Path, part: int, images: str, check: str
) -> None:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=model)
    with open(out / f"images{part}", "wb") as stream:
        for file in files:
            content = file.read_bytes()
            hashlib.sha256(content).digest()
            with Image.open(io.BytesIO(content)) as image:  # noqa: TID251  the bare cost
                if check == "full":
                    image.load()
            if images == "embed":
                stream.write(content)
    with open(out / f"tokens{part}", "wb") as stream:
        for line in lines:
            for turn in json.loads(line)["conversations"]:
                stream.write(np.array(pieces.encode(turn["value"]), dtype=np.int32).tobytes())


class Plain(Dataset[dict[str, Any]]):
    """Samples made from their lines whenever they are asked for, images decoded, tiled and normalised."""

    def __init__(self, corpus: Corpus) -> None:
        """Read the lines."""
        (self.dataset,) = read_data_list(corpus.meta)
        self.encoder = corpus.encoder

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return tokens, labels and normalised tiles of a sample."""
        document = self.encoder.document(self.dataset, number, 0, number)
        mean, std = NORMALISATION["imagenet"]
        pixels = normalise_tiles(read_tiles(document.pictures, 448, mean), mean, std)
        return {"input_ids": document.input_ids, "labels": document.labels, "pixel_values": pixels}


def _online(corpus: Corpus) -> float:
    loader = DataLoader(Subset(Plain(corpus), range(_ONLINE)), batch_size=None)
    began = time.perf_counter()
    for _ in loader:
        pass
    return _ONLINE / (time.perf_counter() - began)
