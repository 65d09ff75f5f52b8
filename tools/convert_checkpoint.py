"""Convert checkpoints: `python tools/convert_checkpoint.py hf-to-mcore|mcore-to-hf SOURCE TARGET`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples, from the top of the repository:
  python tools/convert_checkpoint.py hf-to-mcore tests/golden/reference_checkpoint work_dirs/converted/mcore
  python tools/convert_checkpoint.py mcore-to-hf work_dirs/converted/mcore work_dirs/converted/hf

A training run goes back the same way, with the V2PE settings it was trained with written into config.json:
  python tools/convert_checkpoint.py mcore-to-hf work_dirs/my_run work_dirs/my_run_hf

The Megatron side (format torch_dist) loads in any tensor and pipeline parallel layout. Weights are read from
safetensors only, never from a pickle."""


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="hf-to-mcore|mcore-to-hf")
    forward = commands.add_parser(
        "hf-to-mcore", help="HF InternVL2 folder to Megatron-Core", epilog=EXAMPLES, formatter_class=formatter
    )
    backward = commands.add_parser(
        "mcore-to-hf", help="Megatron-Core checkpoint to HF folder", epilog=EXAMPLES, formatter_class=formatter
    )
    for command, source, target in ((forward, "HF folder", "checkpoint"), (backward, "checkpoint", "HF folder")):
        command.add_argument("source", type=Path, metavar="SOURCE", help=f"{source} to read")
        command.add_argument("target", type=Path, metavar="TARGET", help=f"{target} to create")
        command.add_argument("--overwrite", action="store_true", help=f"replace a {target} that is there")
        command.add_argument(
            "--refuse-non-finite",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="refuse weights that are NaN or infinite; with --no-refuse-non-finite they are converted as they are, "
            "and counted",
        )
    backward.add_argument(
        "--rope-pos-id-version",
        choices=("default", "v2pe_fix", "v2pe_rnd"),
        help="write this V2PE version into config.json; unset: what the run was trained with, or the original",
    )
    backward.add_argument("--rope-pos-id-stride", metavar="STRIDE", help="write this stride: 64, 1/2, 0.5")
    backward.add_argument(
        "--dtype", choices=("bf16", "fp32", "fp16"), help="type of the weights; unset: as in the original HF folder"
    )
    backward.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the checkpoint with its checksums, for one that was edited on purpose",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _parser().parse_args(argv)
    from megatron_v2pe.base.logging import quiet_expected_warnings, setup_logging

    quiet_expected_warnings()
    setup_logging()
    return finished(lambda: _convert(arguments))  # imports torch, seconds; --help need not wait


def _convert(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf

    start = time.monotonic()
    if arguments.command == "hf-to-mcore":
        hf_to_mcore(
            arguments.source,
            arguments.target,
            overwrite=arguments.overwrite,
            refuse_non_finite=arguments.refuse_non_finite,
        )
    else:
        mcore_to_hf(
            arguments.source,
            arguments.target,
            rope_pos_id_version=arguments.rope_pos_id_version,
            rope_pos_id_stride=arguments.rope_pos_id_stride,
            overwrite=arguments.overwrite,
            dtype=arguments.dtype,
            verify=arguments.verify,
            refuse_non_finite=arguments.refuse_non_finite,
        )
    size = sum(path.stat().st_size for path in arguments.target.rglob("*") if path.is_file())
    print(f"{arguments.target}: {size / 1e6:.1f} MB in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    run_tool(main)
