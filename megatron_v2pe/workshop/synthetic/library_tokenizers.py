"""Small tokenizers in the layouts of other language models: Qwen's byte-level BPE, Llama-3's, Llama-2's and Phi-3's.

Trained on the spot on texts at hand; the files are laid out as the published checkpoints have them, so that
transformers opens them too. The same texts give the same files in every run.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from megatron_v2pe.foreign.library_rules import LLAMA3_WORDS, WORDS
from megatron_v2pe.workshop.synthetic.tokenizer import IMAGE_TOKENS, train_tokenizer

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN3_PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Tokens of Qwen3's that are part of an answer's text: not special."""
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>")
PHI3_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
FILES = ("vocab.json", "merges.txt")
"""Qwen's two files; `tokenizer.json` is the third layout."""


def write_byte_level_tokenizer(
    folder: Path,
    texts: Sequence[str],
    pieces: int,
    *,
    kind: str = "qwen2",
    files: Sequence[str] = (*FILES, "added_tokens.json"),
) -> int:
    """Train a byte-level BPE and write its files.

    Args:
        folder: where they go; it is made.
        texts: what is trained on.
        pieces: tokens of the vocabulary, at least 256 (the bytes); fewer come out where the texts have no more pairs.
            Tokens of their own follow: those of the kind, then those of images.
        kind: `qwen2`, `qwen3` (with tokens that are part of an answer's text), or `llama3` (with a token before every
            text).
        files: of Qwen's kinds, which of `vocab.json`, `merges.txt`, `added_tokens.json` and `tokenizer.json` to write;
            Llama-3's has `tokenizer.json` alone. `tokenizer_config.json` and `special_tokens_map.json` are always
            written.

    Returns:
        The number of tokens, those of their own included.
    """
    assert kind in ("qwen2", "qwen3", "llama3") and pieces >= 256, (kind, pieces)
    folder.mkdir(parents=True, exist_ok=True)
    library = _trained(texts, pieces, kind)
    first = library.get_vocab_size()
    plain = QWEN3_PLAIN if kind == "qwen3" else ()
    own = [*(LLAMA3_TOKENS if kind == "llama3" else QWEN_TOKENS), *plain, *IMAGE_TOKENS]
    ids = {name: first + place for place, name in enumerate(own)}
    tokens = [tokenizers.AddedToken(name, special=name not in plain, normalized=False) for name in own]
    if kind == "llama3":
        roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|end_of_text|>"}
        _add(library, tokens)
        library.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", ids["<|begin_of_text|>"])]
        )
        files = ("tokenizer.json",)
        stated: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    else:
        roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        stated = {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None, "unk_token": None}
        if "vocab.json" in files:
            library.model.save(str(folder))
        _add(library, tokens)
    if "tokenizer.json" in files:
        library.save(str(folder / "tokenizer.json"))
    if "added_tokens.json" in files:
        _write(folder / "added_tokens.json", ids)
    listed = [name for name in own if name not in plain]
    _write_settings(folder, ids, listed, roles, stated | {"add_prefix_space": False, "errors": "replace"})
    return first + len(own)


def write_llama_tokenizer(
    folder: Path, texts: Sequence[str], pieces: int, *, legacy: bool = False, phi3: bool = False
) -> int:
    """Train a SentencePiece BPE and write it as Llama's class has it; return the number of tokens.

    Args:
        folder: where the files go; it is made.
        texts: what is trained on.
        pieces: of the SentencePiece model.
        legacy: whether a blank comes before every part of a text.
        phi3: with Phi-3's tokens, behind which white space is left out, instead of ChatML's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_tokenizer(list(texts), pieces, add_dummy_prefix=True))
    own = [*(PHI3_TOKENS if phi3 else QWEN_TOKENS[1:]), *IMAGE_TOKENS]
    ids = {name: pieces + place for place, name in enumerate(own)}
    roles = {"bos_token": "<s>", "eos_token": "<|end|>" if phi3 else "<|im_end|>", "unk_token": "<unk>"}
    stated = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": legacy}
    stripping = set(PHI3_TOKENS[1:]) if phi3 else set[str]()
    _write(folder / "added_tokens.json", ids)
    base = {"<unk>": 0, "<s>": 1, "</s>": 2}
    _write_settings(folder, base | ids, list(IMAGE_TOKENS), roles, stated, stripping)
    return pieces + len(own)


def _trained(texts: Sequence[str], pieces: int, kind: str) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    pattern = LLAMA3_WORDS if kind == "llama3" else WORDS
    library.normalizer = None if kind == "llama3" else normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    return library


def _add(library: tokenizers.Tokenizer, tokens: Sequence[tokenizers.AddedToken]) -> None:
    """Add tokens one by one, so that their ids follow the order, special or not."""
    for token in tokens:
        (library.add_special_tokens if token.special else library.add_tokens)([token])


def _write_settings(
    folder: Path,
    ids: dict[str, int],
    listed: Sequence[str],
    roles: dict[str, str],
    stated: dict[str, Any],
    stripping: Container[str] = (),
) -> None:
    def entry(name: str) -> dict[str, Any]:
        rstrip = name in stripping
        return {"content": name, "lstrip": False, "normalized": False, "rstrip": rstrip, "single_word": False}

    decoder = {str(number): {**entry(name), "special": name not in QWEN3_PLAIN} for name, number in ids.items()}
    config = {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(listed),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        **roles,
        **stated,
    }
    _write(folder / "tokenizer_config.json", config)
    mapped = {role: entry(name) for role, name in roles.items()}
    _write(folder / "special_tokens_map.json", {"additional_special_tokens": list(listed), **mapped})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
