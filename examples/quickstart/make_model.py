"""Make a small InternVL with random weights, in the original Hugging Face layout.

    python examples/quickstart/make_model.py OUT --texts DATA/annotation [--model qwen3]

InternViT, pixel shuffle v2, the mlp1 projector and the language model of the named family (without a name InternLM2, as
in InternVL2-2B), with a few million parameters, and a tokenizer of the family's kind, trained on the texts of the
annotations. The same files come out of every run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron_v2pe.base.command import run_tool
from megatron_v2pe.checkpoint.hf.random_weights import random_weights, write_checkpoint
from megatron_v2pe.workshop.synthetic.small_families import SMALL_FAMILIES, small_family
from megatron_v2pe.workshop.synthetic.small_model import small_internvl2
from megatron_v2pe.workshop.synthetic.small_tokenizer import SmallVocabulary, write_family_tokenizer
from megatron_v2pe.workshop.synthetic.tokenizer import read_texts

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


OTHER_SIZES: dict[str, dict[str, int]] = {
    "qwen3": {"head_dim": 48},
    "phi3": {"num_key_value_heads": 6},
    "internvit-6b": {"hidden_size": 160, "num_attention_heads": 5, "intermediate_size": 644},
}
"""What is otherwise in a family: Qwen3's heads together are wider than its hidden states, Phi-3 has no groups, and the
tower like the 6B one has five heads, which no tensor parallel size but 5 divides."""


def hf_config(vocabulary: SmallVocabulary, model: str) -> dict[str, Any]:
    """Return `config.json`: the fields of the family, smaller numbers."""
    family, others = small_family(model), OTHER_SIZES.get(model, {})
    vision, language = VISION, LANGUAGE
    if family.vision:
        vision = VISION | others
    else:
        language = LANGUAGE | others
    language = {
        **language,
        "vocab_size": vocabulary.tokens,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "rope_scaling": family.rope,
        **vocabulary.ids,
    }
    return small_internvl2(TILE, PATCH, vision, language, family, max_dynamic_patch=4)


def make(out: Path, texts: list[str], model: str = "internlm2") -> tuple[int, int]:
    """Write the checkpoint.

    Returns:
        Its numbers of parameters and of tokens.
    """
    vocabulary = write_family_tokenizer(out, texts, PIECES, small_family(model))
    config = hf_config(vocabulary, model)
    return write_checkpoint(out, config, random_weights(config, SEED), SHARDS), vocabulary.tokens


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make a small InternVL with random weights in the HF layout.")
    parser.add_argument("out", type=Path, help="folder to write to; must not hold files yet")
    parser.add_argument("--texts", type=Path, required=True, help="folder of *.jsonl the tokenizer is trained on")
    parser.add_argument("--model", choices=SMALL_FAMILIES, default="internlm2", help="family (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        print(f"error: {args.out} is in use; name a new or empty folder", file=sys.stderr)
        return 1
    try:
        texts = read_texts(args.texts, small_family(args.model).template)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parameters, vocabulary = make(args.out, texts, args.model)
    kind = "InternVL2" if args.model == "internlm2" else SMALL_FAMILIES[args.model].title
    print(f"{args.out}: {kind} of {parameters:,} parameters, {vocabulary} tokens")
    return 0


if __name__ == "__main__":
    run_tool(main)
