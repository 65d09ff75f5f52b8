"""Make the data of the LoRA example: the quickstart's questions, with what is in colour and what is in grey exchanged.

    python examples/lora/make_data.py QUICKSTART_DATA OUT

OUT/annotation/*.jsonl and OUT/meta.json are those of QUICKSTART_DATA, its pictures are used where they lie. A model
that has learnt the quickstart's answers by heart has all words it needs, and gives the old answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from megatron_v2pe.base.command import run_tool
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.errors import V2PEError

EXCHANGED = {"In colour.": "In grey.", "In grey.": "In colour."}
"""Answer of the quickstart -> answer of this example; all others stay."""


def exchanged(sample: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a line of an annotation file with new answers, and how many of them are new."""
    turns, count = [], 0
    for turn in sample["conversations"]:
        new = EXCHANGED.get(turn["value"]) if turn["from"] == "gpt" else None
        turns.append(turn if new is None else {**turn, "value": new})
        count += new is not None
    return {**sample, "conversations": turns}, count


def make(source: Path, out: Path) -> str:
    """Write the data set; return what it holds, in words.

    Args:
        source: the quickstart's data.
        out: folder to create.

    Raises:
        V2PEError: the source is no data list.
    """
    read_data_list(source / "meta.json")
    meta = json.loads((source / "meta.json").read_text(encoding="utf-8"))
    (out / "annotation").mkdir(parents=True)
    changed = samples = 0
    for entry in meta.values():
        annotation = Path(entry["annotation"])
        lines = [exchanged(json.loads(line)) for line in annotation.read_text(encoding="utf-8").splitlines()]
        target = out / "annotation" / annotation.name
        target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line, _ in lines), encoding="utf-8")
        entry["annotation"] = str(target)
        changed, samples = changed + sum(count for _, count in lines), samples + len(lines)
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return f"{samples} samples, {changed} answers are not the quickstart's"


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the data of the LoRA example from the quickstart's.")
    parser.add_argument("source", type=Path, help="the quickstart's data (work_dirs/quickstart/data)")
    parser.add_argument("out", type=Path, help="new folder")
    arguments = parser.parse_args(argv)
    try:
        words = make(arguments.source, arguments.out)
    except (V2PEError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {words}")
    return 0


if __name__ == "__main__":
    run_tool(main)
