"""Ask a checkpoint: one prompt with images, a JSONL file, or a chat in the terminal."""

from __future__ import annotations

import argparse
import io
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_v2pe.base.command import finished, run_tool

if TYPE_CHECKING:
    from megatron_v2pe.device.launch import World
    from megatron_v2pe.generate.generation import GenerationOptions
    from megatron_v2pe.generate.load import LoadRequest

EXAMPLES = """examples, from the top of the repository; the first two make a tiny checkpoint that answers nonsense:
  python examples/quickstart/make_data.py work_dirs/quickstart/data
  python examples/quickstart/make_model.py work_dirs/quickstart/hf --texts work_dirs/quickstart/data/annotation
  python tools/generate.py --checkpoint work_dirs/quickstart/hf --prompt "What is this?" --max-new-tokens 8 \\
      --image work_dirs/quickstart/data/image/photos/chelsea.jpg
  python tools/generate.py --checkpoint work_dirs/quickstart/hf --chat
  python tools/generate.py --checkpoint CHECKPOINT --input questions.jsonl --output answers.jsonl --batch-size 8
  python -m megatron_v2pe.device.torchrun --nproc-per-node 2 tools/generate.py --checkpoint CHECKPOINT \\
      --context-parallel-size 2 --prompt "..."

A line of the input: {"id": 1, "prompt": "What is this?", "image": "a.png"}; paths are relative to the input's folder,
and "question" is "prompt". "adapter": NAME has one of several --adapter answer the line, "none" the checkpoint alone.
A line of the output: {"id": "1", "answer": "...", "finish_reason": "stop_token", "num_tokens": 7}. Started again, the
command goes on with the ids that have no answer yet.

CHECKPOINT is an HF InternVL folder (converted once, into --converted-dir), a Megatron checkpoint, or a run."""


def _parser() -> argparse.ArgumentParser:
    from megatron_v2pe.generate.load import add_checkpoint_arguments

    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=formatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FOLDER", help="HF folder, Megatron checkpoint, or run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="ask this; <image> marks an image's place")
    what.add_argument("--input", type=Path, metavar="FILE", help="ask every line of a JSONL file")
    what.add_argument("--chat", action="store_true", help="talk in the terminal")
    add(
        "--image",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="images of --prompt, or of the first question of --chat; may be repeated. Where no <image> says where "
        "they belong, they stand before the question: one on a line of its own, several as Image-1: <image>, ...",
    )
    add("--output", type=Path, metavar="FILE", help="JSONL file the answers to --input are added to")
    add("--image-root", type=Path, metavar="FOLDER", help="folder of the images of --input (default: its own)")
    add("--adapter-name", metavar="NAME", help="of several --adapter, the one that answers; none: the checkpoint alone")
    add("--batch-size", type=int, default=1, help="lines of --input answered together (default: %(default)s)")
    choice = parser.add_argument_group("how answers are made")
    add = choice.add_argument
    add("--max-new-tokens", type=int, default=256, help="(default: %(default)s)")
    add("--min-new-tokens", type=int, default=0, help="(default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="0: always the most likely token (default: %(default)s)")
    add("--top-k", type=int, default=0, help="draw among so many tokens; 0: all (default: %(default)s)")
    add("--top-p", type=float, default=1.0, help="draw among tokens of this joint probability (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end an answer before this; may be repeated")
    add_checkpoint_arguments(parser)
    return parser


def check(argv: list[str], processes: int) -> None:
    """Refuse what can be refused before so many processes are started, see `device/launch_checks.py`."""
    from megatron_v2pe.device.launch import World

    _look(_read(argv), World(world_size=processes))


def _read(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.input is None) != (arguments.output is None):
        parser.error("--input and --output go together")
    if arguments.image and arguments.input is not None:
        parser.error("--image belongs to --prompt and --chat; in a JSONL file use the field image")
    if arguments.batch_size < 1:
        parser.error(f"--batch-size is {arguments.batch_size}, expected 1 or more")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _read(argv)
    from megatron_v2pe.base.logging import quiet_expected_warnings

    quiet_expected_warnings()
    return finished(lambda: _run(arguments), "interrupted")


def _look(
    arguments: argparse.Namespace, world: World | None = None
) -> tuple[LoadRequest, GenerationOptions, list[Any]]:
    """Return what is to be asked of which checkpoint and how, all that can be checked without a model checked."""
    from megatron_v2pe.errors import ConfigError, DataError
    from megatron_v2pe.generate.generation import GenerationOptions
    from megatron_v2pe.generate.load import load_request
    from megatron_v2pe.generate.named_adapters import check_asked
    from megatron_v2pe.generate.sampling import Sampling

    request = load_request(arguments, world)
    copy = request.layout.model_parallel_size
    if request.world.world_size != copy:
        raise ConfigError(
            f"{request.world.world_size} processes, but one copy of the model takes {copy}: start {copy}, or lay it "
            f"out over all, for example with --context-parallel-size {request.world.world_size}"
        )
    options = GenerationOptions(
        max_new_tokens=arguments.max_new_tokens,
        min_new_tokens=arguments.min_new_tokens,
        stop_strings=tuple(arguments.stop),
        sampling=Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed),
    )
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise DataError("--prompt: the prompt is empty")
    if arguments.prompt is not None and any("\ud800" <= letter <= "\udfff" for letter in arguments.prompt):
        raise DataError("--prompt: the prompt is not in the encoding of this terminal, see LC_ALL")
    questions = _questions(arguments)
    for name, said in ((arguments.adapter_name, "--adapter-name"), *((one.adapter, one.name) for one in questions)):
        check_asked(name, request.adapters, said)
    return request, options, questions


def _run(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.generate.load import load_model

    request, options, questions = _look(arguments)
    with load_model(request) as loaded:
        if arguments.adapter_name is not None:
            loaded.pretrained.choose(arguments.adapter_name)
        _answer(arguments, loaded.pretrained, questions, loaded.tiling, options, request.world.rank == 0)


def _questions(arguments: argparse.Namespace) -> list[Any]:
    """What is to be asked, read and checked before the model is loaded."""
    from megatron_v2pe.data.image_files import image_size
    from megatron_v2pe.errors import DataError
    from megatron_v2pe.generate.jsonl import answered, read_questions, unanswered
    from megatron_v2pe.generate.pretrained import ChatQuestion

    if arguments.chat:
        questions = [ChatQuestion([], arguments.image, "--image")]
    elif arguments.prompt is not None:
        questions = [ChatQuestion([("human", arguments.prompt)], arguments.image)]
    else:
        if not arguments.output.absolute().parent.is_dir():
            raise DataError(f"--output {arguments.output}: no folder {arguments.output.absolute().parent}")
        answered(arguments.output)  # what is wrong with it comes first
        questions = unanswered(read_questions(arguments.input, arguments.image_root), arguments.output)
    for one in questions:
        for image in one.images:
            try:
                image_size(image)
            except DataError as error:
                raise DataError(f"{one.name}: {error}") from error
    return [] if arguments.chat else questions


def _answer(
    arguments: argparse.Namespace, pretrained: Any, questions: list[Any], tiling: Any, options: Any, first: bool
) -> None:
    from megatron_v2pe.base.progress import progress_bar
    from megatron_v2pe.foreign.printable import printable
    from megatron_v2pe.generate.chat import Chat
    from megatron_v2pe.generate.jsonl import answer_file

    def write(text: str) -> None:
        print(printable(text, lines=True), end="", flush=True)

    if arguments.chat:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # a letter typed in another encoding ends no conversation
        Chat(pretrained, tiling, options, waiting=list(arguments.image)).run(_read_line, write)
    elif arguments.prompt is not None:
        pretrained.ask(questions, tiling, options, lambda _, piece: write(piece) if first else None)
        if first:
            write("\n")
    else:
        settings = (arguments.output, tiling, options, arguments.batch_size, first)
        with progress_bar(total=len(questions), desc="answer", unit="questions", disable=not first) as bar:
            for count in answer_file(pretrained, questions, *settings):
                bar.update(count)


def _read_line() -> str | None:
    with suppress(EOFError, KeyboardInterrupt, ValueError, RuntimeError):  # at its end, or closed
        try:
            return input("> ")
        except KeyboardInterrupt:
            print("\nCtrl-C again, or Ctrl-D, ends the conversation", flush=True)
            return input("> ")
    return None


if __name__ == "__main__":
    run_tool(main)
