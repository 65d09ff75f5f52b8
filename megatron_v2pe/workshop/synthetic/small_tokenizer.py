"""The tokenizer of a small model, of the kind that its family has, and the ids that its configuration states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_v2pe.checkpoint.hf.random_weights import write_json
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.workshop.synthetic.library_tokenizers import write_byte_level_tokenizer, write_llama_tokenizer
from megatron_v2pe.workshop.synthetic.small_families import SmallFamily
from megatron_v2pe.workshop.synthetic.tokenizer import CHAT_TOKENS, added_tokens, write_tokenizer


@dataclass(frozen=True)
class SmallVocabulary:
    """What `llm_config` has to say of a tokenizer."""

    tokens: int
    """Their number."""
    ids: dict[str, int]
    """Fields of the section: ids of the begin, end and padding token."""


def write_family_tokenizer(folder: Path, texts: list[str], pieces: int, family: SmallFamily) -> SmallVocabulary:
    """Train a tokenizer of the family's kind; write its files and `generation_config.json`.

    Args:
        folder: where they go; it is made.
        texts: what is trained on.
        pieces: of the vocabulary; special tokens follow.
        family: of the model.
    """
    if family.tokenizer == "internlm2":
        tokens = write_tokenizer(folder, texts, pieces)
        end = added_tokens(pieces)[CHAT_TOKENS[0]]
        _write_generation(folder, bos_token_id=1, eos_token_id=[2, end], pad_token_id=2)
        return SmallVocabulary(tokens, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    if family.tokenizer in ("llama2", "phi3"):
        tokens = write_llama_tokenizer(folder, texts, pieces, phi3=family.tokenizer == "phi3")
    else:
        tokens = write_byte_level_tokenizer(folder, texts, pieces, kind=family.tokenizer)
    made = Tokenizer.from_folder(folder)
    end = made.token_id(get_template(family.template).end)
    begin = end if made.bos_id is None else made.bos_id
    _write_generation(folder, bos_token_id=begin, eos_token_id=[end], pad_token_id=end)
    return SmallVocabulary(tokens, {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end})


def _write_generation(folder: Path, **fields: Any) -> None:
    write_json(folder / "generation_config.json", fields)
