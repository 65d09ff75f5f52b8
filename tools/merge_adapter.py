"""Merge LoRA adapters into the model they were trained for; the result is an ordinary checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples, from the top of the repository:
  python tools/merge_adapter.py pretrained/InternVL2-2B work_dirs/lora_run work_dirs/merged
  python tools/merge_adapter.py pretrained/InternVL3-8B-hf peft_folder work_dirs/merged --dtype bf16
  python tools/merge_adapter.py BASE FIRST SECOND OUT --weights 0.7 0.3
  python tools/merge_adapter.py pretrained/InternVL2-2B work_dirs/lora_run work_dirs/averaged --adapter-weights ema

BASE is an HF folder (original or native), a Megatron checkpoint, or a run. ADAPTER is a PEFT folder, or a run (or one
of its iter_*) that trained an adapter. A base other than the one an adapter was trained on is refused, as far as the
adapter says which that was; nothing is written then. An HF folder of the published code that holds an adapter among
its weights (use_llm_lora) needs no merging: tools/convert_checkpoint.py hf-to-hf reads it merged.

status: 0; 2 the message says what is wrong"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] BASE ADAPTER [ADAPTER ...] OUT",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("places", nargs="+", type=Path, metavar="BASE ADAPTER ... OUT", help="base, adapters, folder to create")
    add("--weights", nargs="+", type=float, default=[], metavar="W", help="factor of each adapter (default: 1 each)")
    add(
        "--adapter-weights",
        choices=("model", "ema"),
        default="model",
        help="of runs that trained an adapter: ema takes the moving average of what has learned "
        "(optimizer.ema_decay; default: %(default)s)",
    )
    add("--to", choices=("hf", "mcore"), help="what OUT is: an HF folder, or a Megatron checkpoint (default: as BASE)")
    add("--layout", choices=("original", "native"), help="of an HF folder (default: BASE's)")
    add("--dtype", choices=("bf16", "fp32", "fp16"), help="type of the weights; unset: as they are")
    add("--max-shard-size", metavar="SIZE", help="bytes of a file of weights: 5GB")
    add("--memory-limit", metavar="SIZE", help="bytes to hold above interpreter and adapters (default: 2GiB)")
    add("--overwrite", action="store_true", help="replace a folder of the same kind that is there")
    add(
        "--refuse-non-finite",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse weights that are NaN or infinite (default: they are refused)",
    )
    add("--no-verify", dest="verify", action="store_false", help="do not compare what is read with its checksums")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if len(arguments.places) < 3:
        parser.error(f"expected BASE, ADAPTER and OUT, found {len(arguments.places)} folders")
    from megatron_v2pe.base.logging import quiet_expected_warnings, setup_logging

    quiet_expected_warnings()
    setup_logging()
    return finished(lambda: _merge(arguments), "interrupted; the same command goes on where this one was")


def _merge(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.checkpoint.low_rank.merge import merge_adapters
    from megatron_v2pe.generate.native_files import side_files

    names = ("weights", "overwrite", "refuse_non_finite", "dtype", "layout", "memory_limit", "max_shard_size", "verify")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    base, *adapters, target = arguments.places
    start = time.monotonic()
    options |= {"form": arguments.to, "averaged": arguments.adapter_weights == "ema"}
    merge_adapters(base, adapters, target, side_files=side_files, **options)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    run_tool(main)
