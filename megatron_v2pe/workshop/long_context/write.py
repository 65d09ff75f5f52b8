"""Writing a data set: samples made one by one or by several processes, in order, with images, data list and report.

What is written does not depend on the number of processes: a sample is a pure function of its number.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from megatron_v2pe.base.progress import followed
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.text import json_line
from megatron_v2pe.workshop.long_context.built import TRAINING_LINES, Builder, Built
from megatron_v2pe.workshop.long_context.made_images import Shown

DATA_LIST, REPORT = "meta.json", "report.json"
_DEPTH_BINS = 10
_LENGTH_BINS = 10
_AHEAD = 4
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}


@dataclass
class Summary:
    """Numbers of a data set, for the report and for the command that trains on it."""

    lengths: list[int] = field(default_factory=list)
    short_of_target: list[int] = field(default_factory=list)
    """Tokens each sample lacks of its target."""
    tiles: list[int] = field(default_factory=list)
    images: int = 0
    depths: list[float] = field(default_factory=list)
    categories: Counter[str] = field(default_factory=Counter)

    def add(self, built: Built) -> None:
        """Count a sample."""
        self.lengths.append(built.tokens)
        self.short_of_target.append(built.target - built.tokens)
        self.tiles.append(built.tiles)
        self.images += len(built.images)
        self.depths += built.depths
        self.categories[built.category] += 1

    def report(self) -> dict[str, Any]:
        """Return the numbers as they are written: extremes, sums and histograms."""
        count = len(self.lengths)
        return {
            "samples": count,
            "categories": dict(sorted(self.categories.items())),
            "tokens": {"min": min(self.lengths), "max": max(self.lengths), "total": sum(self.lengths)},
            "tiles": {"min": min(self.tiles), "max": max(self.tiles), "total": sum(self.tiles)},
            "images": self.images,
            "exactly_at_target": sum(short == 0 for short in self.short_of_target),
            "most_short_of_target": max(self.short_of_target),
            "lengths": _histogram(self.lengths),
            "depths": [
                sum(min(int(depth * _DEPTH_BINS), _DEPTH_BINS - 1) == index for depth in self.depths)
                for index in range(_DEPTH_BINS)
            ],
        }


def write_data_set(builder: Builder, samples: int, folder: Path, final: Path, name: str, workers: int = 0) -> Summary:
    """Write a data set: lines, images, data list and report.

    Args:
        builder: makes samples.
        samples: how many.
        folder: to write into; empty.
        final: the name the folder will have, which the data list refers to.
        name: of the data set in the data list.
        workers: processes that make samples; 0: this one.

    Raises:
        DataError: a sample cannot be made; names it and the numbers. Or a process died.
    """
    summary = Summary()
    with ExitStack() as stack:
        streams: dict[str, TextIO] = {}
        results = stack.enter_context(_results(builder, samples, folder, workers))
        for built in followed(results, total=samples, desc=name, unit="samples"):
            for file, line in built.lines.items():
                if file not in streams:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    streams[file] = stack.enter_context((folder / file).open("w", encoding="utf-8"))
                streams[file].write(json_line(line))
            summary.add(built)
    _write_json(folder / DATA_LIST, {name: _entry(builder, final, samples)})
    report = {**summary.report(), "encoding": _encoding(builder), "settings": builder.settings()}
    _write_json(folder / REPORT, {**report, "left_out": builder.left_out()})
    return summary


@contextmanager
def _results(builder: Builder, samples: int, folder: Path, workers: int) -> Iterator[Iterator[Built]]:
    """Give all samples in order, their images written."""
    if not workers:
        yield (_make(builder, folder, number) for number in range(samples))
        return
    # New processes, not copies of this one: threads of torch do not survive a copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (builder, folder)) as pool:
        try:
            yield _in_order(pool, samples, _AHEAD * workers)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, samples: int, ahead: int) -> Iterator[Built]:
    """Yield samples in order, no more than so many of them made or being made at a time."""
    pending: deque[Future[Built]] = deque()
    numbers = iter(range(samples))
    try:
        while True:
            pending.extend(pool.submit(_make_here, number) for number in islice(numbers, ahead - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError("a process that makes samples died; where memory ran out, use fewer --workers") from error


_of_this_process: tuple[Builder, Path] | None = None


def _start(builder: Builder, folder: Path) -> None:
    global _of_this_process
    _of_this_process = builder, folder


def _make_here(number: int) -> Built:
    assert _of_this_process is not None
    return _make(*_of_this_process, number)


def _make(builder: Builder, folder: Path, number: int) -> Built:
    built = builder.build(number)
    for image in built.images:
        _render(image, folder)
    return built


def _render(image: Shown, folder: Path) -> None:
    path = folder / image.path
    if image.recipe is None or path.exists():  # pictures shown in many samples are made once
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rendered = image.recipe.render()
    assert rendered.size == image.size, f"{image.path} has {rendered.size} pixels, planned were {image.size}"
    rendered.save(path, **_JPEG)


def _entry(builder: Builder, final: Path, samples: int) -> dict[str, Any]:
    """Return the entry of the data list; what decides the length of images goes with it."""
    return {
        "annotation": str(final / TRAINING_LINES),
        "root": f"{final}/",
        "data_augment": True,
        "repeat_time": 1,
        "max_dynamic_patch": builder.encoding.max_dynamic_patch,
        "dynamic_image_size": builder.encoding.dynamic_image_size,
        "length": samples,
    }


def _encoding(builder: Builder) -> dict[str, Any]:
    encoding = builder.encoding
    return {name: value for name, value in vars(encoding).items() if isinstance(value, str | int | bool)} | {
        "tokenizer": encoding.tokenizer.model_file
    }


def _histogram(values: list[int]) -> list[dict[str, int]]:
    """Return how many values lie in each of equal parts between the extremes."""
    low, width = min(values), max(1, -(-(max(values) - min(values) + 1) // _LENGTH_BINS))
    counts = Counter((value - low) // width for value in values)
    return [{"from": low + index * width, "samples": counts[index]} for index in range(max(counts) + 1)]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
