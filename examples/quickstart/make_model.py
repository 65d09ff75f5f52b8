"""Make a small InternVL2 with random weights, in the original Hugging Face layout.

    python examples/quickstart/make_model.py OUT --texts DATA/annotation

InternViT, pixel shuffle v2, the mlp1 projector and InternLM2 as in InternVL2-2B, with a few million parameters, and a
SentencePiece tokenizer of its own, trained on the texts of the annotations. The same files come out of every run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron_v2pe.base.command import run_tool
from megatron_v2pe.checkpoint.hf.random_weights import random_weights, write_checkpoint, write_json
from megatron_v2pe.workshop.synthetic.small_model import small_internvl2
from megatron_v2pe.workshop.synthetic.tokenizer import added_tokens, read_texts, write_tokenizer

PIECES = 600
"""Pieces of the SentencePiece vocabulary; special tokens follow. Their sum is no multiple of anything handy."""
SEED = 2
SHARDS = 2
TILE, PATCH = 112, 14
VISION = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
LANGUAGE = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
}


def hf_config(vocabulary: int) -> dict[str, Any]:
    """Return `config.json`: the fields of InternVL2-2B, smaller numbers."""
    language = {
        **LANGUAGE,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    return small_internvl2(TILE, PATCH, VISION, language, max_dynamic_patch=4)


def make(out: Path, texts: list[str]) -> tuple[int, int]:
    """Write the checkpoint.

    Returns:
        Its numbers of parameters and of tokens.
    """
    vocabulary = write_tokenizer(out, texts, PIECES)
    end = added_tokens(PIECES)["<|im_end|>"]
    write_json(out / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, end], "pad_token_id": 2})
    config = hf_config(vocabulary)
    return write_checkpoint(out, config, random_weights(config, SEED), SHARDS), vocabulary


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make a small InternVL2 with random weights in the HF layout.")
    parser.add_argument("out", type=Path, help="folder to write to; must not hold files yet")
    parser.add_argument("--texts", type=Path, required=True, help="folder of *.jsonl the tokenizer is trained on")
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        print(f"error: {args.out} is in use; name a new or empty folder", file=sys.stderr)
        return 1
    try:
        texts = read_texts(args.texts)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parameters, vocabulary = make(args.out, texts)
    print(f"{args.out}: InternVL2 of {parameters:,} parameters, {vocabulary} tokens")
    return 0


if __name__ == "__main__":
    run_tool(main)
