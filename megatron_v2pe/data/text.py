"""A conversation with images as token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_v2pe.data.conversation import Template
from megatron_v2pe.data.tokenizer import IMG_CONTEXT, IMG_END, IMG_START, Tokenizer
from megatron_v2pe.data.types import IGNORE_INDEX
from megatron_v2pe.errors import DataError

PLACEHOLDER = "<image>"
Turns = Sequence[tuple[str, str]]


def encode_conversation(
    tokenizer: Tokenizer,
    template: Template,
    turns: Turns,
    num_tiles: Sequence[int],
    tokens_per_tile: int,
    prompt: bool = False,
) -> tuple[Tensor, Tensor]:
    """Tokenise a conversation; answers and their closing tokens are labelled.

    Args:
        tokenizer: of the checkpoint.
        template: conversation template.
        turns: (role, text), a human first; the k-th `<image>` in them stands for the k-th image.
        num_tiles: tiles of each image.
        tokens_per_tile: image tokens per tile.
        prompt: end with an opened answer, for generation; nothing is labelled then in the last turn.

    Returns:
        input_ids and labels, int64 [L]; labels in place, -100 where nothing is learned.

    Raises:
        DataError: turns do not alternate, or placeholders and images differ in number.
    """
    turns = _with_image_tokens(turns, num_tiles, tokens_per_tile)
    ids, labels = [tokenizer.bos_id], [IGNORE_INDEX]
    image_ids = {tokenizer.img_start_id, tokenizer.img_end_id, tokenizer.img_context_id}
    for message in template.render(turns, prompt=prompt):
        tokens = tokenizer.encode(message.text)
        ids += tokens
        if message.learned_from is None:
            labels += [IGNORE_INDEX] * len(tokens)
        else:
            head = tokenizer.prefix_length(message.text, tokens, message.learned_from)
            learned = (IGNORE_INDEX if token in image_ids else token for token in tokens[head:])
            labels += [*[IGNORE_INDEX] * head, *learned]
    return torch.tensor(ids), torch.tensor(labels)


def with_placeholder(turns: Turns, placeholder: str = PLACEHOLDER) -> list[tuple[str, str]]:
    """Put a placeholder before the first question if it has none, as single images and videos allow."""
    (role, text), *others = turns
    return [(role, text if placeholder in text else f"{placeholder}\n{text}"), *others]


def _with_image_tokens(turns: Turns, num_tiles: Sequence[int], tokens_per_tile: int) -> list[tuple[str, str]]:
    found = sum(text.count(PLACEHOLDER) for _, text in turns)
    if found != len(num_tiles):
        raise DataError(f"{found} {PLACEHOLDER} placeholders in the conversation, but {len(num_tiles)} images")
    runs = iter([IMG_START + IMG_CONTEXT * (tiles * tokens_per_tile) + IMG_END for tiles in num_tiles])
    filled: list[tuple[str, str]] = []
    for role, text in turns:
        first, *rest = text.split(PLACEHOLDER)
        filled.append((role, first + "".join(next(runs) + part for part in rest)))
    return filled
