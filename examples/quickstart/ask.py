"""Ask an exported checkpoint every question of a data list, and compare with the answers given there.

    python examples/quickstart/ask.py CHECKPOINT DATA/meta.json [--stride 4]

Prints question, expected and generated side by side. The exit status is 0 if at least 90% come back word for word, 1
if fewer do, 2 if a file is missing or wrong. Questions are asked in turn: later ones see the answers generated before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.base.command import run_tool
from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.types import Sample
from megatron_v2pe.errors import V2PEError
from megatron_v2pe.generate.pretrained import Pretrained, open_pretrained
from megatron_v2pe.generate.prompt import checkpoint_tiling
from megatron_v2pe.v2pe.settings import parse_stride

LONGEST_ANSWER = 32
"""Tokens generated at most."""


@dataclass(frozen=True)
class Asked:
    """One question and its two answers."""

    dataset: str
    question: str
    pictures: str
    expected: str
    generated: str

    @property
    def right(self) -> bool:
        """Whether the answers are the same, spaces aside."""
        return self.expected.split() == self.generated.split()


def conversation(
    sample: Sample, dataset: str, answer: Callable[[list[tuple[str, str]]], str], names: str
) -> Iterator[Asked]:
    """Ask the questions of one sample, each after the answers generated to those before it."""
    history: list[tuple[str, str]] = []
    for (_, question), (_, expected) in zip(sample.conversations[::2], sample.conversations[1::2], strict=False):
        history.append(("human", question))
        generated = answer(history)
        history.append(("gpt", generated))
        plain = question.split("\n")[-1]
        yield Asked(dataset, plain, names, expected, generated)


def ask_dataset(pretrained: Pretrained, dataset: Dataset) -> Iterator[Asked]:
    """Ask every question of one data set, with its own limit of tiles."""
    tiling = checkpoint_tiling(pretrained.config, dataset.max_dynamic_patch)
    for line in range(len(dataset)):
        sample = dataset.read(line)

        def answer(turns: list[tuple[str, str]], sample: Sample = sample) -> str:
            return pretrained.answer(turns, sample.images, tiling, LONGEST_ANSWER)

        names = ", ".join(Path(image).stem for image in sample.images) or "-"
        yield from conversation(sample, dataset.name, answer, names)


def table(asked: Sequence[Asked]) -> str:
    """Return the answers as lines of text under a heading."""
    rows = [("question", "pictures", "expected", "generated")]
    rows += [(a.question, a.pictures, a.expected, a.generated) for a in asked]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    marks = ["     ", *("right" if a.right else "WRONG" for a in asked)]
    lines = [
        f"{mark}  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for mark, row in zip(marks, rows, strict=True)
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def summary(asked: Sequence[Asked]) -> str:
    """Return how many are right, in all and by data set."""
    parts = []
    for name in dict.fromkeys(a.dataset for a in asked):
        own = [a for a in asked if a.dataset == name]
        parts.append(f"{name} {sum(a.right for a in own)}/{len(own)}")
    right = sum(a.right for a in asked)
    return f"{right} of {len(asked)} right ({right / len(asked):.1%}): {', '.join(parts)}"


def ask_all(checkpoint: Path, meta: Path, stride: str | None, window: int | None = None) -> list[Asked]:
    """Open a checkpoint, of any kind, and ask every question of a data list."""
    datasets = read_data_list(meta)
    turns = sum(len(dataset.read(line).conversations) // 2 for dataset in datasets for line in range(len(dataset)))
    with tempfile.TemporaryDirectory(prefix="quickstart-ask-") as scratch:
        converted = Path(scratch) / "megatron"
        place = find_checkpoint(checkpoint, "checkpoint")
        if place.is_hf:
            hf_to_mcore(place.folder, converted)
        asked: list[Asked] = []
        folder = converted if place.is_hf else place.folder
        with open_pretrained(
            folder, None if stride is None else parse_stride(stride), "cpu", window=window
        ) as pretrained:
            policy = pretrained.policy
            how = "" if policy.stride is None else f", rope_pos_id_stride {policy.stride}"
            print(f"asking with rope_pos_id_version {policy.version}{how}")
            with progress_bar(total=turns, desc="ask", unit="questions") as bar:
                for dataset in datasets:
                    for item in ask_dataset(pretrained, dataset):
                        asked.append(item)
                        bar.update()
    return asked


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Ask a checkpoint every question of a data list.")
    parser.add_argument("checkpoint", type=Path, help="HF folder, Megatron checkpoint, or run")
    parser.add_argument("meta", type=Path, help="data list with the questions")
    parser.add_argument("--stride", help="positions a tile spans (v2pe_fix); default: a quarter of a tile's tokens")
    parser.add_argument("--window", type=int, help="positions a question may reach; default: the checkpoint's")
    parser.add_argument("--at-least", type=float, default=0.9, help="share that must be right (default: 0.9)")
    args = parser.parse_args(argv)
    try:
        asked = ask_all(args.checkpoint, args.meta, args.stride, args.window)
    except V2PEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(asked))
    print(summary(asked))
    if sum(a.right for a in asked) < args.at_least * len(asked):
        print(f"error: fewer than {args.at_least:.0%} of the answers are right", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
