"""Tokenizers of small models: a SentencePiece model of the texts at hand, and the special tokens of InternVL2."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import sentencepiece

from megatron_v2pe.data.conversation import get_template

CHAT_TOKENS = ("<|im_end|>", "<|im_start|>")
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def added_tokens(pieces: int) -> dict[str, int]:
    """Return the special tokens, which follow the pieces of the SentencePiece model, with their ids."""
    return {token: pieces + index for index, token in enumerate(CHAT_TOKENS + IMAGE_TOKENS)}


def write_tokenizer(folder: Path, texts: list[str], pieces: int) -> int:
    """Train a tokenizer and write its files; return its number of tokens, special ones included."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_tokenizer(texts, pieces))
    for name, content in tokenizer_files(pieces).items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return pieces + len(added_tokens(pieces))


def train_tokenizer(texts: list[str], pieces: int, *, add_dummy_prefix: bool = False) -> bytes:
    """Train a byte-pair SentencePiece model on texts; bytes stand for characters not in them.

    Args:
        texts: what is trained on.
        pieces: of the model.
        add_dummy_prefix: put a space before every text, as Llama's models do and InternLM2's does not.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        max_sentencepiece_length=64,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def read_texts(folder: Path, name: str = "internlm2-chat") -> list[str]:
    """Return every line of text in a folder's annotation files as a chat template writes it, each once.

    Args:
        folder: of the `*.jsonl`.
        name: of the template, whose special tokens are left out.

    Raises:
        FileNotFoundError: there is no annotation file.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder}: holds no annotation (*.jsonl)")
    samples = [json.loads(line) for path in files for line in path.read_bytes().splitlines()]
    template = get_template(name)
    rendered = [
        message.text
        for sample in samples
        for message in template.render([(turn["from"], turn["value"]) for turn in sample["conversations"]])
    ]
    between = "|".join(map(re.escape, ("<image>", *template.marks, "\n")))
    lines = [line for text in rendered for line in re.split(between, text) if line]
    return list(dict.fromkeys(lines))


def tokenizer_files(pieces: int) -> dict[str, Any]:
    """Return the JSON files beside `tokenizer.model`."""
    added = added_tokens(pieces)

    def entry(token: str) -> dict[str, Any]:
        plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        return {"content": token, **plain}

    base = {"<unk>": 0, "<s>": 1, "</s>": 2}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    extra = [*reversed(CHAT_TOKENS), *IMAGE_TOKENS]
    decoder = {str(index): {**entry(token), "special": True} for token, index in {**base, **added}.items()}
    return {
        "added_tokens.json": added,
        "special_tokens_map.json": {
            "additional_special_tokens": extra,
            **{role: entry(token) for role, token in roles.items()},
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": decoder,
            "additional_special_tokens": extra,
            **roles,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32768,
            "tokenizer_class": "InternLM2Tokenizer",
        },
    }
