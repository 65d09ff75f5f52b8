"""Print a pack or a sample as training sees it: text with positions, labels and images; draw its tiles."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from megatron_v2pe.base.command import finished, run_tool
from megatron_v2pe.train.data_tools import add_model_arguments, read_settings, tokenizer_and_facts

if TYPE_CHECKING:
    from megatron_v2pe.train.config import ExperimentConfig
    from megatron_v2pe.workshop.inspection.find import Found
    from megatron_v2pe.workshop.inspection.views import PackView

EXAMPLES = """The settings are those of training (`tools/train.py --help`), so the same recipe shows what it trains on:
a data list (--data.meta-path) or an indexed data set (--data.indexed-path):

  python tools/inspect_data.py --recipe internvl2_2b_v2pe_32k --pack 7 --sheet pack.png | less
  python tools/inspect_data.py --recipe internvl2_2b_v2pe_32k --data.indexed-path dataset/indexed_32k --sample 12345
  python tools/inspect_data.py --recipe internvl2_2b_v2pe_32k --sample train_long_vqa_docvqa:17 --json

Examples that run as they are, after `bash scripts/quickstart.sh`:

  python tools/inspect_data.py --recipe quickstart --pack 2 --sheet pack.png
  python tools/inspect_data.py --recipe quickstart --sample quickstart_multi:1 --context-parallel-size 4

An index counts tokens of the document, from 0; positions are exact (17 255/256). An image is one line, its marks <img>
and </img> among its indices. Lines marked > are what the model learns to write. The sheet shows tiles as they are cut
and augmented for that epoch."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [settings of training]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--pack", type=int, default=0, metavar="K", help="pack of the epoch, of a data list: of the run; default: 0"
    )
    chosen.add_argument(
        "--sample", metavar="NAME", help="one sample instead: DATASET:LINE, or a number of an indexed data set"
    )
    parser.add_argument("--epoch", type=int, default=0, metavar="E", help="whose order and draws; default: 0")
    parser.add_argument("--sheet", metavar="FILE", help="draw the tiles into this PNG file")
    parser.add_argument("--max-tiles", type=int, default=600, metavar="N", help="most tiles drawn; default: 600")
    parser.add_argument("--json", action="store_true", help="print JSON: the same, positions as ticks / denominator")
    parser.add_argument(
        "--shorten", type=int, metavar="N", help="show the first N characters of a run of text; default: all"
    )
    parser.add_argument(
        "--context-parallel-size",
        type=int,
        metavar="N",
        help="layout whose padding is counted; default: parallel.context_parallel_size",
    )
    add_model_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments, settings = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    from megatron_v2pe.base.logging import setup_logging

    setup_logging()
    return finished(lambda: _inspect(arguments, settings))


def _inspect(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    from megatron_v2pe.data.conversation import get_template
    from megatron_v2pe.data.encode import DocumentEncoder
    from megatron_v2pe.recipes.registry import RECIPES
    from megatron_v2pe.workshop.inspection.find import find_pack, find_sample
    from megatron_v2pe.workshop.inspection.listing import as_text
    from megatron_v2pe.workshop.inspection.views import Viewer

    config = _with_positions(read_settings(settings, RECIPES))
    tokenizer, facts, config = tokenizer_and_facts(arguments, config)
    seed = config.train.seed
    encoder = DocumentEncoder(config.data, tokenizer, facts, config.v2pe.policy(seed), seed)
    if arguments.sample is None:
        found = find_pack(encoder, arguments.pack, arguments.epoch)
    else:
        found = find_sample(encoder, arguments.sample, arguments.epoch)
    template = get_template(config.data.template_name)
    viewer = Viewer(config.data, tokenizer, template, facts.tokens_per_tile, encoder.denominator)
    view = viewer.pack(found.title, found.documents, found.left_out, _padded(arguments, config, found))
    if arguments.sheet:
        _draw(arguments, config, found, view, facts.tile_size)
    if arguments.json:
        print(json.dumps(asdict(view), indent=1, ensure_ascii=False))
    else:
        print(as_text(view, sys.stdout.isatty(), arguments.shorten), end="")
    sys.stdout.flush()


def _with_positions(config: ExperimentConfig) -> ExperimentConfig:
    """Return the settings with positions an indexed set recorded, where the run asks for those."""
    if config.v2pe.rope_pos_id_version != "recorded":
        return config
    from megatron_v2pe.base.logging import quiet_expected_warnings

    quiet_expected_warnings()

    return config.with_recorded_strides()


def _padded(arguments: argparse.Namespace, config: ExperimentConfig, found: Found) -> tuple[int, ...]:
    """Return the lengths of the documents under the parallel layout."""
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.parallel.zigzag import ZigzagLayout

    context = arguments.context_parallel_size or config.parallel.context_parallel_size
    if context < 1:
        raise ConfigError(f"--context-parallel-size {context}: expected 1 or more")
    lengths = tuple(document.num_tokens for document in found.documents)
    return ZigzagLayout(lengths, context, config.parallel.tensor_model_parallel_size).seqlens


def _draw(
    arguments: argparse.Namespace, config: ExperimentConfig, found: Found, view: PackView, tile_size: int
) -> None:
    from megatron_v2pe.data.image_operations import NORMALISATION
    from megatron_v2pe.workshop.inspection.contact_sheet import contact_sheet

    mean, _ = NORMALISATION[config.data.normalize_type]
    sheet = contact_sheet(view, found.documents, tile_size, mean, found.open_picture, arguments.max_tiles)
    sheet.save(arguments.sheet, format="PNG")
    print(f"{arguments.sheet}: {sheet.width} x {sheet.height} pixels", file=sys.stderr)


if __name__ == "__main__":
    run_tool(main)
