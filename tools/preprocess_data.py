"""Build an indexed data set: samples tokenised and images measured once, for training that starts at once."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_v2pe.base.command import finished, run_tool
from megatron_v2pe.train.data_tools import add_model_arguments, read_settings, tokenizer_and_facts

if TYPE_CHECKING:
    from megatron_v2pe.data.indexed.layout import Manifest

EXAMPLES = """The settings are those of training (`tools/train.py --help`), so that the same recipe builds and trains:

  python tools/preprocess_data.py --recipe internvl2_2b_v2pe_32k --out dataset/indexed_32k --workers 32
  torchrun ... tools/train.py --recipe internvl2_2b_v2pe_32k --data.indexed-path dataset/indexed_32k

An example that runs as it is, after `bash scripts/quickstart.sh`:

  python tools/preprocess_data.py --recipe quickstart --model_name_or_path work_dirs/quickstart/hf \\
      --meta_path work_dirs/quickstart/data/meta.json --out work_dirs/quickstart/indexed

Without a checkpoint, a tokenizer's folder is enough (--tokenizer). A build that was stopped, or killed, goes on when
the same command is given again; what it makes does not depend on the number of workers. Samples that cannot be used
are left out and listed in OUT/report.json, in short in OUT/report.txt; OUT/lengths.png shows the lengths."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s --out FOLDER [options] [settings of training]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to be made")
    parser.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes; default: one per core, 0: this one alone"
    )
    parser.add_argument(
        "--images",
        choices=("reference", "embed"),
        default="reference",
        help="keep paths and checksums of images (default), or the image files themselves, each once",
    )
    parser.add_argument(
        "--image-check",
        choices=("header", "full"),
        default="header",
        help="look at format and size of images (default), or read the pixels of each, and every frame of videos",
    )
    parser.add_argument(
        "--max-skipped",
        type=int,
        default=None,
        metavar="N",
        help="stop when more samples cannot be used; default: never",
    )
    add_model_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments, settings = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    from megatron_v2pe.base.logging import setup_logging

    setup_logging()
    return finished(lambda: _make(arguments, settings), "stopped; the same command goes on from here")


def _make(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    from megatron_v2pe.data.indexed.verify import report_of

    start = time.monotonic()
    manifest = _build(arguments, settings)
    print(report_of(Path(arguments.out), manifest, "report.txt"), end="")
    print(
        f"{arguments.out}: {manifest.counts['samples']:,} samples of {manifest.counts['tokens']:,} tokens and "
        f"{manifest.counts['tiles']:,} tiles in {time.monotonic() - start:.1f} s; "
        f"train with --data.indexed-path {arguments.out}"
    )


def _build(arguments: argparse.Namespace, settings: Sequence[str]) -> Manifest:
    from megatron_v2pe.base.config_tree import to_dict
    from megatron_v2pe.data.data_list import read_data_list
    from megatron_v2pe.data.encode import DocumentEncoder
    from megatron_v2pe.data.indexed.build import BuildOptions, build
    from megatron_v2pe.recipes.registry import RECIPES

    config = read_settings(settings, RECIPES)
    options = BuildOptions(
        out=arguments.out,
        workers=(os.cpu_count() or 1) if arguments.workers is None else arguments.workers,
        images=arguments.images,
        image_check=arguments.image_check,
        max_skipped_samples=arguments.max_skipped,
    )
    tokenizer, facts, config = tokenizer_and_facts(arguments, config)
    encoder = DocumentEncoder(config.data, tokenizer, facts, config.v2pe.policy(0), config.train.seed)
    return build(read_data_list(config.data.meta_path), encoder, options, to_dict(config.v2pe))


if __name__ == "__main__":
    run_tool(main)
