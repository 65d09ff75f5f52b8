"""Opening an indexed data set of very many samples, reading any of them, planning the first packs of an epoch."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.checksums import write_checksums
from megatron_v2pe.data.indexed.megatron_format import write_index
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.workshop.measuring.lengths import drawn_lengths

DESCRIPTION = "opening 10 million samples, reading some, planning the first packs of an epoch"
_IDS, _CONTEXT = 24, 7
"""Ids of a sample, and the id of an image in them: what is in a sample does not matter here."""


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py data_open", description=DESCRIPTION)
    parser.add_argument("--samples", type=int, default=10_000_000, help="(default: %(default)s)")
    parser.add_argument("--reads", type=int, default=10_000, help="samples read (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, arguments.samples)
        process = psutil.Process()
        before = process.memory_info().rss
        began = time.perf_counter()
        samples = IndexedSamples(folder)
        opened = time.perf_counter() - began
        grown = process.memory_info().rss - before
        chosen = np.random.default_rng(0).integers(arguments.samples, size=arguments.reads).tolist()
        began = time.perf_counter()
        for number in chosen:
            samples[number]
        read = time.perf_counter() - began
        config = DataConfig(max_packed_tokens=34000, num_images_expected=135)
        began = time.perf_counter()
        plan = IndexedPlan(samples, config, seed=0, skipped=SkipLog(0))
        plan.step(32)
        planned = time.perf_counter() - began
        size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "samples": arguments.samples,
        "index GiB": round(size / 2**30, 2),
        "open ms": round(opened * 1000, 2),
        "memory after opening MiB": round(grown / 2**20, 2),
        "read a sample us": round(read / arguments.reads * 1e6, 1),
        "order of an epoch and first packs s": round(planned, 2),
    }


def _write(folder: Path, samples: int) -> None:
    tokens, tiles = drawn_lengths(100_000, 0)
    rows = np.zeros(samples, dtype=layout.SAMPLE)
    rows["tokens"], rows["tiles"] = np.resize(tokens, samples), np.resize(tiles, samples).clip(1)
    rows["supervised"], rows["ids"], rows["line"] = 4, _IDS, np.arange(1, samples + 1)
    rows["first_range"] = rows["first_medium"] = np.arange(samples)
    rows.tofile(folder / layout.SAMPLES)
    ids = np.arange(_IDS, dtype=layout.TOKEN_TYPE)
    with open(folder / f"{layout.TOKENS}.bin", "wb") as stream:
        for first in range(0, samples, 1_000_000):
            np.tile(ids, min(1_000_000, samples - first)).tofile(stream)
    write_index(folder / f"{layout.TOKENS}.idx", rows["ids"], layout.TOKEN_TYPE)
    np.tile(np.array([[20, 24]], dtype="<i4"), (samples, 1)).tofile(folder / layout.RANGES)
    media = np.zeros(samples, dtype=layout.MEDIUM)
    media["columns"], media["rows"] = rows["tiles"], 1
    media.tofile(folder / layout.MEDIA)
    file = np.zeros(1, dtype=layout.FILE)
    file.tofile(folder / layout.FILES)
    (folder / layout.PATHS).write_bytes(b"image.jpg")
    longest = {"samples": samples, "longest": int(tokens.max()), "most_tiles": int(tiles.max())}
    names = [path.name for path in folder.iterdir()]
    digest = write_checksums(folder, names, {})
    entry = layout.IndexedSet("all", "all.jsonl", "", samples, 0, samples, 1.0)
    layout.Manifest(
        settings={"image_token": _CONTEXT},
        limits={},
        tokenizer_sha256="",
        template_sha256="",
        embedded=False,
        image_check="header",
        v2pe={},
        plan_sha256="",
        lengths_sha256="",
        datasets=(entry,),
        counts=longest,
        sizes={path.name: os.path.getsize(path) for path in folder.iterdir()},
        checksums_xxh3=digest,
    ).write(folder)
