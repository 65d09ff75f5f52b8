"""Convert checkpoints: `python tools/convert_checkpoint.py hf-to-mcore|mcore-to-hf|hf-to-hf|mcore-to-mcore SRC OUT`."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples, from the top of the repository:
  python tools/convert_checkpoint.py hf-to-mcore tests/golden/reference_checkpoint work_dirs/converted/mcore
  python tools/convert_checkpoint.py mcore-to-hf work_dirs/converted/mcore work_dirs/converted/hf

A training run goes back the same way, with the V2PE settings it was trained with written into config.json:
  python tools/convert_checkpoint.py mcore-to-hf work_dirs/my_run work_dirs/my_run_hf

Another layout, type or size of files, without a checkpoint in between; weights of a run without its optimizer:
  python tools/convert_checkpoint.py hf-to-hf pretrained/InternVL3-8B out --layout native --max-shard-size 5GB
  python tools/convert_checkpoint.py mcore-to-mcore work_dirs/my_run out --dtype bf16

What a conversion would read, write and hold, also where there is no more than a config.json or a preset's name:
  python tools/convert_checkpoint.py hf-to-mcore --preset InternVL2_5-78B out --plan

The Megatron side (format torch_dist) loads in any tensor and pipeline parallel layout. Weights are read from
safetensors only, never from a pickle. A conversion that was killed is gone on with by the same command.

status: 0 converted; 2 something has to be mended, see the message; 75 the disk is full: make room, and
give the same command again; 130 interrupted, the same command goes on"""
COMMANDS = {
    "hf-to-mcore": ("HF folder", "checkpoint", "HF InternVL folder to Megatron-Core"),
    "mcore-to-hf": ("checkpoint", "HF folder", "Megatron-Core checkpoint to HF folder"),
    "hf-to-hf": ("HF folder", "HF folder", "HF folder in another layout, type or size of files"),
    "mcore-to-mcore": ("checkpoint", "checkpoint", "weights of a checkpoint alone, in another type or size of files"),
}


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, (source, target, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, epilog=EXAMPLES, formatter_class=formatter)
        command.add_argument("places", nargs="+", type=Path, metavar="SOURCE TARGET", help=f"{source}, {target}")
        command.add_argument("--overwrite", action="store_true", help=f"replace a {target} that is there")
        command.add_argument(
            "--refuse-non-finite",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="refuse weights that are NaN or infinite; with --no-refuse-non-finite they are converted as they are, "
            "and counted",
        )
        command.add_argument(
            "--dtype", choices=("bf16", "fp32", "fp16"), help="type of the weights; unset: as they are"
        )
        command.add_argument(
            "--max-shard-size",
            metavar="SIZE",
            help="bytes of a file of weights: 5GB; unset: as the original was cut, 5GB in another layout; one data "
            "file of a Megatron checkpoint",
        )
        command.add_argument(
            "--memory-limit", metavar="SIZE", help="bytes to hold above the interpreter, at most (default: 2GiB)"
        )
        command.add_argument("--plan", action="store_true", help="say what will be read, written and held; do nothing")
        if name.startswith("hf"):
            command.add_argument(
                "--preset",
                metavar="NAME",
                help="with --plan: a published model in place of SOURCE, see tools/presets.py",
            )
        if name.endswith("hf"):
            command.add_argument(
                "--layout",
                choices=("original", "native"),
                help="names and config.json of the published folders, or of transformers' class; unset: the source's",
            )
            command.add_argument(
                "--language-model",
                metavar="MODEL_TYPE",
                help="of an original folder that is made of a native one: internlm2 for what is llama there",
            )
        if name == "mcore-to-hf":
            _add_export(command)
        if name.startswith("mcore"):
            command.add_argument(
                "--no-verify",
                dest="verify",
                action="store_false",
                help="do not compare the checkpoint with its checksums, for one that was edited on purpose",
            )
    return parser


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rope-pos-id-version",
        choices=("default", "v2pe_fix", "v2pe_rnd"),
        help="write this V2PE version into config.json; unset: what the run was trained with, or the original",
    )
    command.add_argument(
        "--weights",
        choices=("model", "ema"),
        default="model",
        help="of a training checkpoint: ema takes the moving average of what has learned (optimizer.ema_decay)",
    )
    command.add_argument(
        "--adapter",
        choices=("merge", "beside"),
        default="merge",
        help="of a run that trained an adapter: TARGET is the whole model with it merged, or the adapter alone as a "
        "PEFT folder, for the model that it was trained on (default: %(default)s)",
    )
    command.add_argument("--rope-pos-id-stride", metavar="STRIDE", help="write this stride: 64, 1/2, 0.5")
    command.add_argument(
        "--manifest",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write manifest.json, the SHA-256 of every tensor; unset: unless the folder is the original to the byte",
    )


def _check_beside(asked: Mapping[str, Any]) -> None:
    """Refuse what says how a whole model is written, where an adapter alone is.

    Raises:
        ConfigError: names the flag and the reason.
    """
    from megatron_v2pe.errors import ConfigError

    reasons = {
        "max_shard_size": "PEFT reads one file of weights",
        "memory_limit": "an adapter is held whole",
        "manifest": "there is no manifest of an adapter",
        "language_model": "an adapter has no config.json of a model",
        "rope_pos_id_version": "an adapter has no config.json of a model",
        "rope_pos_id_stride": "an adapter has no config.json of a model",
    }
    for name, reason in reasons.items():
        if asked[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} goes with --adapter merge, not with beside: {reason}. Leave it out")
    if not asked["refuse_non_finite"]:
        raise ConfigError("--no-refuse-non-finite goes with --adapter merge: an adapter must be numbers. Leave it out")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    preset, expected = getattr(arguments, "preset", None), 2
    if preset is not None:
        expected = 1
        if not arguments.plan:
            parser.error("--preset goes with --plan: a preset has no weights")
    if len(arguments.places) != expected:
        wanted = "TARGET" if expected == 1 else "SOURCE TARGET"
        parser.error(f"{arguments.command}: expected {wanted}, found {len(arguments.places)} folders")
    from megatron_v2pe.base.logging import quiet_expected_warnings, setup_logging

    quiet_expected_warnings()
    setup_logging()
    interrupted = "interrupted; the same command goes on where this one was"
    return finished(lambda: _convert(arguments), interrupted)  # imports torch, seconds; --help need not wait


def _convert(arguments: argparse.Namespace) -> None:
    gc.disable()  # what is imported stays, and looking through it again and again takes a fifth of the time
    from megatron_v2pe.checkpoint.hf import api

    gc.freeze()
    gc.enable()
    asked = vars(arguments)
    target = arguments.places[-1]
    names = ("overwrite", "refuse_non_finite", "dtype", "max_shard_size", "memory_limit", "layout", "verify")
    names += ("rope_pos_id_version", "rope_pos_id_stride", "manifest", "language_model", "weights")
    options = {name: asked[name] for name in names if name in asked}
    if arguments.plan:
        from megatron_v2pe.checkpoint.hf.on_paper import plan_conversion
        from megatron_v2pe.checkpoint.hf.options import Options

        preset = asked.get("preset")
        source = None if preset is not None else arguments.places[0]
        print("\n".join(plan_conversion(arguments.command, source, target, Options(**options), preset)))
        return
    if asked.get("adapter") == "beside":
        from megatron_v2pe.checkpoint.low_rank.merge import export_adapter
        from megatron_v2pe.generate.native_files import side_files

        _check_beside(asked)
        kept = {name: options[name] for name in ("layout", "overwrite", "verify", "dtype")}
        average = options["weights"] == "ema"
        export_adapter(arguments.places[0], target, averaged=average, side_files=side_files, **kept)
        print(f"{target}: the adapter in PEFT's form")
        return
    from megatron_v2pe.generate.native_files import check_conversation, side_files

    if arguments.command.startswith("hf"):
        check_conversation(arguments.places[0])
    if arguments.command != "hf-to-mcore":
        options["side_files"] = side_files
    start = time.monotonic()
    convert = getattr(api, arguments.command.replace("-", "_"))
    convert(arguments.places[0], target, **options)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    run_tool(main)
