"""Compare two checkpoints, of any kind and layout, tensor by tensor and in their logits; or one with its manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples, from the top of the repository:
  python tools/convert_checkpoint.py hf-to-mcore tests/golden/reference_checkpoint work_dirs/verified/mcore
  python tools/verify_checkpoint.py tests/golden/reference_checkpoint work_dirs/verified/mcore
  python tools/verify_checkpoint.py work_dirs/verified/mcore
  python tools/verify_checkpoint.py tests/golden/reference_checkpoint work_dirs/verified/mcore --logits --random 7

A checkpoint is an HF folder (original or native), a Megatron checkpoint (converted, or iter_* of a run in any parallel
layout) or a run. Tensors have the names of the folders that OpenGVLab publishes. Without a second checkpoint every
tensor is compared with the SHA-256 in the folder's manifest.json.

status: 0 the same; 1 different, what differs is listed; 2 they cannot be compared, see the message"""
DIFFERENT = 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, metavar="A", help="checkpoint")
    parser.add_argument("second", type=Path, metavar="B", nargs="?", help="checkpoint it is compared with")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="a tensor may differ by T times its largest value, and in its type; unset: type and bytes are the same",
    )
    parser.add_argument("--show", type=int, default=10, metavar="N", help="differing tensors to list; default: 10")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare Megatron folders with their checksums"
    )
    parser.add_argument("--logits", action="store_true", help="compare logits too, in float32 on the CPU")
    parser.add_argument("--random", type=int, default=0, metavar="SEED", help="of random input for logits; default: 0")
    parser.add_argument("--prompt", metavar="TEXT", help="ask this in place of random input")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="picture of the prompt; repeat it")
    parser.add_argument(
        "--logits-tolerance",
        type=float,
        default=1e-4,
        metavar="T",
        help="largest difference of two logits that is allowed; default: %(default)s",
    )
    parser.add_argument(
        "--converted-dir",
        metavar="FOLDER",
        help="where HF folders are converted for logits (default: work_dirs/converted)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, see `--help`."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.second is None and (arguments.logits or arguments.tolerance is not None):
        parser.error("--logits and --tolerance need two checkpoints")
    if (arguments.prompt is not None or arguments.image) and not arguments.logits:
        parser.error("--prompt and --image are for --logits")
    from megatron_v2pe.base.logging import quiet_expected_warnings, setup_logging

    quiet_expected_warnings()
    setup_logging()
    return finished(lambda: _verify(arguments))


def _verify(arguments: argparse.Namespace) -> int:
    from megatron_v2pe.checkpoint.hf.compare import check_manifest, compare, open_any

    first = open_any(arguments.first, arguments.verify)
    if arguments.second is None:
        print(f"{arguments.first}: {check_manifest(first)} tensors are those of its manifest")
        return 0
    second = open_any(arguments.second, arguments.verify)
    found = compare(first, second, arguments.tolerance)
    for title, names in ((f"only in {first.where}", found.only_first), (f"only in {second.where}", found.only_second)):
        if names:
            print(f"{title}: {len(names)} tensors: {', '.join(names[: arguments.show])}")
    for difference in found.differing[: arguments.show]:
        print(difference)
    if len(found.differing) > arguments.show:
        print(f"... and {len(found.differing) - arguments.show} more")
    within = f", {found.within} within the tolerance" if arguments.tolerance is not None else ""
    missing = len(found.only_first) + len(found.only_second)
    only = f", {missing} in one alone" if missing else ""
    print(f"{found.tensors} tensors compared: {found.equal} the same{within}, {len(found.differing)} different{only}")
    same = found.same
    if arguments.logits:
        same = _compare_logits(arguments) and same
    return 0 if same else DIFFERENT


def _compare_logits(arguments: argparse.Namespace) -> bool:
    from megatron_v2pe.checkpoint.conversions import conversions, converted
    from megatron_v2pe.checkpoint.resolve import find_checkpoint
    from megatron_v2pe.generate.compared_logits import LogitInput, logits_of

    given = LogitInput(arguments.prompt, tuple(arguments.image), arguments.random)
    logits = []
    for checkpoint in (arguments.first, arguments.second):
        place = find_checkpoint(checkpoint, "checkpoint")
        folder = converted(place.folder, conversions(arguments.converted_dir)) if place.is_hf else place.folder
        logits.append(logits_of(folder, given))
    first, second = logits
    if first.shape != second.shape:
        print(f"logits: vocabularies of {first.shape[1]} and {second.shape[1]} tokens")
        return False
    apart, same_best = float((first - second).abs().max()), bool((first.argmax(1) == second.argmax(1)).all())
    asked = f"random input of seed {given.seed}" if given.prompt is None else "the prompt"
    print(
        f"logits on {asked}: {apart:.3g} apart at most, of values up to {float(first.abs().max()):.3g}; the same "
        f"tokens are chosen: {'yes' if same_best else 'no'}"
    )
    return apart <= arguments.logits_tolerance


if __name__ == "__main__":
    run_tool(main)
