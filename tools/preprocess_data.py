"""Build an indexed data set: samples tokenised and images measured once, for training that starts at once."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_v2pe.data.documents import ModelFacts
    from megatron_v2pe.data.indexed.layout import Manifest
    from megatron_v2pe.data.tokenizer import Tokenizer
    from megatron_v2pe.train.config import ExperimentConfig

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
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
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
        help="look at format and size of images (default), or decode each",
    )
    parser.add_argument(
        "--max-skipped",
        type=int,
        default=None,
        metavar="N",
        help="stop when more samples cannot be used; default: never",
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer's folder; default: the checkpoint's")
    parser.add_argument("--tile-size", type=int, metavar="PIXELS", help="side of a tile without a checkpoint: 448")
    parser.add_argument("--tokens-per-tile", type=int, metavar="N", help="image tokens per tile without one: 256")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="as of tools/train.py: --recipe, --data. ...")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 2 for what the user can mend."""
    arguments, settings = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    from megatron_v2pe.errors import V2PEError  # torch takes seconds to import; --help need not wait
    from megatron_v2pe.logging import setup_logging

    setup_logging()
    start = time.monotonic()
    try:
        manifest = _build(arguments, settings)
    except (V2PEError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    print((Path(arguments.out) / "report.txt").read_text(encoding="utf-8"), end="")
    print(
        f"{arguments.out}: {manifest.counts['samples']:,} samples of {manifest.counts['tokens']:,} tokens and "
        f"{manifest.counts['tiles']:,} tiles in {time.monotonic() - start:.1f} s; "
        f"train with --data.indexed-path {arguments.out}"
    )
    return 0


def _build(arguments: argparse.Namespace, settings: Sequence[str]) -> Manifest:
    from megatron_v2pe.config_tree import to_dict
    from megatron_v2pe.data.documents import DocumentEncoder
    from megatron_v2pe.data.indexed.build import BuildOptions, build
    from megatron_v2pe.data.sources import read_data_list
    from megatron_v2pe.recipes.registry import RECIPES
    from megatron_v2pe.train import cli

    config = cli.parse([*arguments.settings, *settings], RECIPES)
    config.v2pe.validate()
    config.data.validate()
    options = BuildOptions(
        out=arguments.out,
        workers=(os.cpu_count() or 1) if arguments.workers is None else arguments.workers,
        images=arguments.images,
        image_check=arguments.image_check,
        max_skipped_samples=arguments.max_skipped,
    )
    tokenizer, facts = _tokenizer_and_facts(arguments, config)
    encoder = DocumentEncoder(config.data, tokenizer, facts, config.v2pe.stride_policy(0), config.train.seed)
    return build(read_data_list(config.data.meta_path), encoder, options, to_dict(config.v2pe))


def _tokenizer_and_facts(arguments: argparse.Namespace, config: ExperimentConfig) -> tuple[Tokenizer, ModelFacts]:
    """Find the tokenizer, and what is to be known of the model."""
    from megatron_v2pe.checkpoint.folder import HF_FOLDER, newest
    from megatron_v2pe.data.documents import ModelFacts
    from megatron_v2pe.data.tokenizer import Tokenizer
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.models.config import InternVLConfig

    source = config.model.model_name_or_path
    folder = Path(source)
    if source and not (folder / "config.json").is_file():  # a Megatron checkpoint or a run
        folder = (newest(folder) or folder) / HF_FOLDER
    place = arguments.tokenizer or config.model.tokenizer_path or (str(folder) if source else None)
    if place is None:
        raise ConfigError("name a checkpoint (--model_name_or_path FOLDER) or a tokenizer (--tokenizer FOLDER)")
    size, tokens = arguments.tile_size, arguments.tokens_per_tile
    if source and arguments.tokenizer is None or (folder / "config.json").is_file():
        model = InternVLConfig.from_folder(folder)
        size, tokens = size or model.tile_size, tokens or model.tokens_per_tile
    tokenizer = Tokenizer.from_folder(place)
    if missing := tokenizer.missing():
        raise ConfigError(f"{place}: the tokenizer lacks {', '.join(missing)}; it is not an InternVL2 tokenizer")
    return tokenizer, ModelFacts(size or 448, tokens or 256)


if __name__ == "__main__":
    sys.exit(main())
