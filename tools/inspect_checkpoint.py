"""Print what a checkpoint holds: model, sizes, files, settings, tokenizer, how it was trained; no weight is read."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples, from the top of the repository:
  python tools/inspect_checkpoint.py tests/golden/reference_checkpoint
  python tools/inspect_checkpoint.py tests/golden/reference_checkpoint --tensors --filter 'layers.0.*norm'
  python tools/inspect_checkpoint.py tests/golden/reference_checkpoint --json

FOLDER is an HF folder (original or native; config.json alone, or with an index, is enough), a Megatron checkpoint, or
a run, whose newest checkpoint is taken.

status: 0; 2 no checkpoint, or one that is incomplete or damaged: see the message"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="checkpoint")
    parser.add_argument("--tensors", action="store_true", help="list every tensor with its type, shape and bytes")
    parser.add_argument("--filter", metavar="PATTERN", help="of the tensors, list those whose name has this expression")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, see `--help`."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.filter is not None:
        try:
            re.compile(arguments.filter)
        except re.error as error:
            parser.error(f"--filter {arguments.filter!r}: {error}")
    from megatron_v2pe.base.logging import quiet_expected_warnings, setup_logging

    quiet_expected_warnings()
    setup_logging()
    return finished(lambda: _inspect(arguments))


def _inspect(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.checkpoint.hf.facts import facts_of, in_words, tensors_of

    facts = facts_of(arguments.folder)
    listed = tensors_of(arguments.folder) if arguments.tensors or arguments.filter is not None else []
    if arguments.filter is not None:
        listed = [one for one in listed if re.search(arguments.filter, one[0])]
    if arguments.json:
        if arguments.tensors or arguments.filter is not None:
            names = ("name", "dtype", "shape", "bytes")
            facts["tensors"] = [dict(zip(names, one, strict=True)) for one in listed]
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    for line in in_words(facts):
        print(line)
    for name, dtype, shape, size in listed:
        print(f"{name}  {dtype}  {list(shape)}  {size}")


if __name__ == "__main__":
    run_tool(main)
