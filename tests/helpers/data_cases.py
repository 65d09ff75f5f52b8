"""A small data list with samples of every kind, and building it; comparing folders and batches. For tests."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.indexed.build import BuildOptions, build
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Batch
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for, write_dataset

POLICY = StridePolicy("v2pe_rnd", strides=(1, 2, 4), seed=5)


@dataclass
class Case:
    """A data list and how it is encoded."""

    meta: Path
    encoder: DocumentEncoder

    def build(
        self,
        out: str | Path,
        encoder: DocumentEncoder | None = None,
        v2pe: dict[str, Any] | None = None,
        **options: Any,
    ) -> IndexedSamples:
        """Build an indexed data set and open it."""
        build(read_data_list(self.meta), encoder or self.encoder, BuildOptions(str(out), **options), v2pe or {})
        return IndexedSamples(out)


def every_kind(folder: Path, tokenizer: Tokenizer) -> Case:
    """Write two data sets: images in all ways, text, videos as folder and GIF, other tiling in the second."""
    meta = write_dataset(folder, lines=30)
    root = folder / "image"
    (root / "frames").mkdir()
    generator = np.random.default_rng(1)
    frames = [Image.fromarray(generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)) for _ in range(9)]
    for number, frame in enumerate(frames):
        frame.save(root / "frames" / f"{number:03}.png")
    frames[0].save(root / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    rows = [
        {"video": "frames/", "conversations": turns("what happens")},
        {"video": "clip.gif", "clip": [0.2, 0.8], "conversations": turns("<video>\nwhat")},
        {"image": ["1.png", "5.png"], "conversations": turns("<image> one", "see <image> here", "two", "three")},
        {"image": "3.png", "conversations": turns("what")},
    ]
    (folder / "more.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    lists = json.loads(meta.read_text())
    lists["more"] = {
        "annotation": str(folder / "more.jsonl"),
        "root": str(root),
        "data_augment": False,
        "repeat_time": 2.5,
        "max_dynamic_patch": 2,
    }
    meta.write_text(json.dumps(lists))
    config = config_for(meta, min_num_frame=2, max_num_frame=4)
    return Case(meta, DocumentEncoder(config, tokenizer, FACTS, POLICY, seed=5))


def turns(*texts: str) -> list[dict[str, str]]:
    """Return texts as questions and answers in turn, an answer added where the last is a question."""
    texts = (*texts, "yes") if len(texts) % 2 else texts
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def assert_same_folders(one: Path, other: Path) -> None:
    """Compare the files of two folders byte by byte."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


def assert_same_ticks(ours: Ticks, theirs: Ticks) -> None:
    """Compare positions, and how they are counted, bit by bit."""
    assert ours.denominator == theirs.denominator and torch.equal(ours.values, theirs.values)


def assert_same_batches(ours: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    """Compare micro-batches bit by bit."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.sources == other.sources and one.seqlens == other.seqlens and one.num_tiles == other.num_tiles
        for name in ("input_ids", "labels", "loss_weights", "tiles"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert_same_ticks(one.position_ticks, other.position_ticks)
