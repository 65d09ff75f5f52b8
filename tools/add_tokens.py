"""Add tokens to a checkpoint without training: an HF folder whose tokenizer, embedding and head have them."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples, from the top of the repository:
  printf '<loc_1>\\n<loc_2>\\n' > work_dirs/tokens.txt
  python tools/add_tokens.py work_dirs/quickstart/hf work_dirs/tokens.txt work_dirs/with_tokens

Rows of a new token are the mean of the rows of the pieces that it replaces. What a file of tokens looks like, and what
is refused, says docs/new_tokens.md. A run adds tokens by itself: tools/train.py ... --model.add-tokens FILE.

status: 0 written; 2 it cannot be done, see the message, nothing is written"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="HF folder, Megatron checkpoint, or run")
    parser.add_argument("tokens", metavar="FILE", help="new tokens, one on each line, or a JSON list (NAME.json)")
    parser.add_argument("target", type=Path, metavar="OUT", help="HF folder to create")
    parser.add_argument("--template", metavar="NAME", help="conversation template; default: the checkpoint's")
    parser.add_argument("--overwrite", action="store_true", help="replace an HF folder that is there")
    parser.add_argument("--memory-limit", metavar="SIZE", help="bytes above the interpreter, at most; default: 2GiB")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, see `--help`."""
    arguments = _parser().parse_args(argv)
    from megatron_v2pe.base.logging import quiet_expected_warnings, setup_logging

    quiet_expected_warnings()
    setup_logging()
    from megatron_v2pe.checkpoint.growth import Growth
    from megatron_v2pe.checkpoint.hf.grow import add_tokens
    from megatron_v2pe.data.tokenizer import Tokenizer
    from megatron_v2pe.models.config import InternVLConfig
    from megatron_v2pe.train.new_tokens import growth_of_run, pieces_in_words

    def growth_of(hf: Path, model: InternVLConfig) -> Growth:
        tokenizer = Tokenizer.of_model(hf, model.llm.vocab_size)
        growth = growth_of_run(arguments.tokens, model, tokenizer, arguments.template or model.template)
        assert growth is not None
        return growth

    options = {"overwrite": arguments.overwrite, "memory_limit": arguments.memory_limit}

    def work() -> int:
        growth = add_tokens(arguments.checkpoint, arguments.target, growth_of, **options)
        print(f"{growth.in_words()}; {pieces_in_words(growth)}")
        return 0

    return finished(work)


if __name__ == "__main__":
    run_tool(main)
