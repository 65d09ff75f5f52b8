"""The model before it has learned anything: a tiny InternVL of the named family and its tokenizer, in the HF layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from task import DIGITS, NAMES, PATCH, TILE, TOKENS_PER_TILE, WORDS, Costs

from megatron_v2pe.checkpoint.hf.random_weights import random_weights, write_checkpoint
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.tokenize import encode_conversation
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.workshop.synthetic.small_families import small_family
from megatron_v2pe.workshop.synthetic.small_model import small_internvl2
from megatron_v2pe.workshop.synthetic.small_tokenizer import SmallVocabulary, write_family_tokenizer

PIECES = 768
TRAINED_LENGTH = 256
"""Tokens of a training document, and so the positions an ordinary model has seen."""
VISION = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
LANGUAGE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
ROPE_THETA = 400
"""With heads of 32 and 256 tokens, as many rotary pairs stay short of a full turn (38%) as with InternLM2's theta 1e6,
heads of 128 and 32K tokens."""
OUTPUTS = ("wo.weight", "w2.weight", "o_proj.weight", "down_proj.weight")
"""Matrices at the end of attention and of the MLP, by the names that families give them: they begin small."""


def hf_config(vocabulary: SmallVocabulary, model: str) -> dict[str, Any]:
    """Return `config.json`: the fields of the family, smaller numbers."""
    language = {
        **LANGUAGE,
        "vocab_size": vocabulary.tokens,
        "max_position_embeddings": TRAINED_LENGTH,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        **vocabulary.ids,
    }
    family = small_family(model)
    return small_internvl2(TILE, PATCH, VISION, language, family, downsample_ratio=1.0, use_thumbnail=False)


def make(folder: Path, seed: int, model: str) -> Costs:
    """Write the checkpoint of a family (`SMALL_FAMILIES`); return what lines and turns cost in its tokens."""
    family = small_family(model)
    template = get_template(family.template)
    frames = [message.text for message in template.render([("human", "Anna"), ("gpt", "Anna seven")])]
    between = "|".join(map(re.escape, template.marks))
    plain = [part for text in frames for part in re.sub(between, "", text).split("\n")]
    lines = [*NAMES, *WORDS, *(f"{a} {b}" for a, b in zip(WORDS, (*WORDS[1:], WORDS[0]), strict=True))]
    texts = [line for line in [*plain, *lines, *(f" {digit}" for digit in DIGITS)] if line]
    vocabulary = write_family_tokenizer(folder, texts * 4, PIECES, family)
    config = hf_config(vocabulary, model)
    weights = random_weights(config, seed, dict.fromkeys(OUTPUTS, 0.02))
    write_checkpoint(folder, config, weights)
    return measure(folder, model)


def measure(folder: Path, model: str) -> Costs:
    """Count what a document's parts cost in the tokens of a checkpoint.

    Raises:
        AssertionError: a name, a word or a digit is not a token of its own.
    """
    tokenizer, template = Tokenizer.from_folder(folder), get_template(small_family(model).template)
    for text in [*NAMES, *WORDS, *(f" {word}" for word in (*WORDS, *DIGITS)), "\n"]:
        assert len(tokenizer.encode(text)) == 1, f"{text!r} is {len(tokenizer.encode(text))} tokens"

    def length(questions: int) -> int:
        turns = [("human", "Anna"), ("gpt", "Anna seven")] * questions
        return len(encode_conversation(tokenizer, template, turns, [], TOKENS_PER_TILE)[0])

    frame = length(1)
    return Costs(frame, length(2) - frame)
