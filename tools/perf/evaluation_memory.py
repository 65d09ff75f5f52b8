"""How much memory one very long question of MM-NIAH takes on a rank when two ranks share it, beside one process.

A made-up question in MM-NIAH's format is asked through the evaluation's own runner, in new processes each time. Memory
is what the system counts (the largest resident set of a process), less what the process takes before a model is there:
interpreter, libraries, process group. The target is that of two ranks neither takes more than 0.55 of what one process
takes for the same question; the ratio of whole resident sets is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from PIL import Image

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.device.launch import World
from megatron_v2pe.evaluate import runner
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.generate import tiles
from megatron_v2pe.generate.generation import Generated
from megatron_v2pe.generate.pretrained import open_pretrained
from megatron_v2pe.generate.prompt import checkpoint_tiling
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder
from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer
from perf._training import Shape

DESCRIPTION = "memory of a question of 131,072 tokens per rank at context parallel size 2 beside one process"
BENCHMARK = "mmniah_long_128k"
FILLER = " the red square is left of the blue circle"
MARKS = 2
"""Tokens around an image's own."""
TARGET = 0.55


@dataclass(frozen=True)
class Asked:
    """What one rank measured."""

    answer: Answer | None
    """The answer, on the rank that writes."""
    token_ids: list[int]
    """Tokens of the answer: random weights may give some that are no text."""
    seconds: float
    images: int
    """Images decoded here."""
    decode_seconds: float
    resting: int
    """Resident bytes before a model was there."""
    loaded: int
    """Resident bytes with the model's weights."""
    peak: int
    """Most resident bytes."""


def run(argv: list[str]) -> dict[str, Any]:
    """Ask on one process, then on two; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py evaluation_memory", description=DESCRIPTION)
    parser.add_argument("--tokens", type=int, default=131072, help="of the prompt, about (default: %(default)s)")
    parser.add_argument("--images", type=int, default=480, help="of one tile each (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="query heads of 64 (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=2, help="key-value heads (default: %(default)s)")
    parser.add_argument("--prefill-tokens", type=int, default=16384, help="run at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: %(default)s)")
    arguments = parser.parse_args(argv)
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    shape = Shape(arguments.layers, arguments.heads, arguments.groups)
    found: dict[int, list[Asked]] = {}
    with tempfile.TemporaryDirectory(prefix="evaluation_memory") as folder:
        work = Path(folder)
        tokenizer = _write_checkpoint(work, shape)
        _write_question(work, tokenizer, arguments.tokens, arguments.images)
        for size in (1, 2):
            pool = WorkerPool(size, 14400)
            try:
                settings = {"prefill_tokens": arguments.prefill_tokens, "threads": arguments.threads}
                found[size] = pool.run(ask, work=str(work), size=size, **settings)
            finally:
                pool.close()
    answer = found[1][0].answer
    assert answer is not None
    one, worst = found[1][0], max(found[2], key=lambda rank: rank.peak - rank.resting)
    share = (worst.peak - worst.resting) / (one.peak - one.resting)
    return {
        "model": str(shape),
        "type": "fp32",
        "tokens": answer.num_tokens,
        "tiles": answer.num_tiles,
        "prefill tokens": arguments.prefill_tokens,
        "same answer": one.token_ids == worst.token_ids and answer.error is None,
        "answer's tokens": answer.error or one.token_ids,
        "share": round(share, 4),
        "target": f"at most {TARGET}: {'met' if share <= TARGET else 'MISSED'}",
        "share of whole resident sets": round(max(rank.peak for rank in found[2]) / one.peak, 4),
        "results": [_row(size, rank, asked) for size in found for rank, asked in enumerate(found[size])],
        "question MiB": "most resident bytes less those before a model was there; share: larger rank over one process",
    }


def _row(size: int, rank: int, asked: Asked) -> dict[str, Any]:
    return {
        "processes": size,
        "rank": rank,
        "question MiB": _mib(asked.peak - asked.resting),
        "weights MiB": _mib(asked.loaded - asked.resting),
        "resting MiB": _mib(asked.resting),
        "peak MiB": _mib(asked.peak),
        "images decoded": asked.images,
        "decode s": round(asked.decode_seconds, 2),
        "s": round(asked.seconds, 1),
    }


def ask(work: str, size: int, prefill_tokens: int, threads: int) -> Asked:
    """Ask the question on this rank, all ranks sharing it."""
    torch.set_num_threads(threads)
    folder, resting = Path(work), _status("VmRSS")
    spent: list[tuple[int, float]] = []

    def timed(pictures: Any, *settings: Any, **more: Any) -> torch.Tensor:
        began = time.perf_counter()
        read = read_tiles(pictures, *settings, **more)
        spent.append((len(pictures), time.perf_counter() - began))
        return read

    def noted(*arguments: Any, **more: Any) -> list[Generated]:
        answers.extend(generate(*arguments, **more))
        return answers

    answers: list[Generated] = []
    read_tiles, generate = tiles.read_tiles, runner.generate
    layout, world = ParallelConfig(context_parallel_size=size), World(rank=dist.get_rank(), world_size=size)
    settings: dict[str, Any] = {"window": 1 << 30, "prefill_tokens": prefill_tokens}
    with open_pretrained(folder / "megatron", 64, "cpu", layout=layout, world=world, **settings) as pretrained:
        loaded = _status("VmRSS")
        benchmark, out = create(BENCHMARK), folder / f"out{size}"
        questions = list(benchmark.questions(folder / "data"))
        began = time.perf_counter()
        with mock.patch.object(tiles, "read_tiles", timed), mock.patch.object(runner, "generate", noted):
            runner.Runner(pretrained, checkpoint_tiling(pretrained.config)).run(benchmark, questions, out)
        seconds = time.perf_counter() - began
    return Asked(
        answer=AnswerLog(out).answers[questions[0].id] if world.rank == 0 else None,
        token_ids=answers[0].token_ids if answers else [],
        seconds=seconds,
        images=sum(count for count, _ in spent),
        decode_seconds=sum(taken for _, taken in spent),
        resting=resting,
        loaded=loaded,
        peak=_status("VmHWM"),
    )


def _write_checkpoint(work: Path, shape: Shape) -> Tokenizer:
    config = {**shape.hf_config(), "rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 64}
    write_hf_folder(work / "hf", config, shards=1)
    tokenizer = write_tokenizer(work / "hf")
    hf_to_mcore(work / "hf", work / "megatron")
    return tokenizer


def _write_question(work: Path, tokenizer: Tokenizer, tokens: int, images: int) -> None:
    """Write one question with images spread evenly in text that fills it up."""
    folder, pictures = work / "data/dataset/val/long_mr_128k", work / "data/dataset/image/long_mr/val"
    folder.mkdir(parents=True)
    pictures.mkdir(parents=True)
    draws = torch.Generator().manual_seed(0)
    for number in range(images):
        pixels = torch.randint(0, 256, (14, 14, 3), generator=draws, dtype=torch.uint8)
        picture = Image.fromarray(pixels.numpy()).resize((448, 448), Image.Resampling.BICUBIC)
        picture.save(pictures / f"{number}.jpg", quality=90)
    room = max(tokens - images * (256 + MARKS), 0) // max(images, 1)
    filler = FILLER * max(1, round(room / len(tokenizer.encode(FILLER))))
    row = {
        "id": 0,
        "images_list": [f"{number}.jpg" for number in range(images)],
        "context": f"{filler}<image>" * images,
        "question": "what do you see in picture one?",
        "answer": 0,
        "meta": {"placed_depth": 0.5, "context_length": tokens, "choices": ["a red square", "a blue circle"]},
    }
    (folder / "retrieval-image.jsonl").write_text(json.dumps(row) + "\n")


def _status(name: str) -> int:
    """A size the system keeps of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _mib(number: int) -> float:
    return round(number / 2**20, 1)
