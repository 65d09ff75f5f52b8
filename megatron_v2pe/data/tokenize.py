"""A conversation with images as token ids and labels: first with one token per image, then with all of them.

Where a text does not say where its images stand, the published layouts hold. In training, a single image or a video
stands before the first question (`with_placeholder`). Where a model is asked (`with_images`), a single image goes on a
line of its own before the first question, as the published chat function puts it, and several get a line each,
`Image-1: <image>`, `Image-2: <image>`, ..., which is how InternVL2's own examples show several images and what its
training data look like. A text that places one image itself places all of them: nothing is added then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_v2pe.data.conversation import SYSTEM, Message, Template
from megatron_v2pe.data.tokenizer import IMG_CONTEXT, IMG_END, IMG_START, Tokenizer
from megatron_v2pe.data.types import IGNORE_INDEX, CompactText
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
        tokenizer: tokenizer of the checkpoint.
        template: conversation template.
        turns: (role, text), see `Template.render`; the k-th `<image>` in them stands for the k-th image.
        num_tiles: tiles of each image.
        tokens_per_tile: image tokens per tile.
        prompt: end with an opened answer, for generation; nothing is labelled then in the last turn.

    Returns:
        input_ids and labels, int64 [L]; labels in place, -100 where nothing is learned.

    Raises:
        DataError: turns do not alternate, or placeholders and images differ in number.
    """
    return expand(compact_conversation(tokenizer, template, turns, len(num_tiles), prompt), num_tiles, tokens_per_tile)


def compact_conversation(
    tokenizer: Tokenizer, template: Template, turns: Turns, num_images: int, prompt: bool = False
) -> CompactText:
    """Tokenise a conversation with one token per image.

    Args:
        tokenizer: tokenizer of the checkpoint.
        template: conversation template.
        turns: (role, text), see `Template.render`; the k-th `<image>` in them stands for the k-th image.
        num_images: how many images there are.
        prompt: end with an opened answer, for generation.

    Raises:
        DataError: see `encode_conversation`; also where the text itself spells a token of an image, which would then be
            taken for an image.
    """
    turns = _with_image_tokens(turns, num_images)
    ids, learned = list(tokenizer.before), list[tuple[int, int]]()
    for message in template.render(turns, prompt=prompt):
        tokens = tokenizer.encode_known(message.text) if message.fixed else tokenizer.encode(message.text)
        if message.learned_from is not None:
            head, tail = _learned(tokenizer, template, message, tokens)
            learned.append((len(ids) + head, len(ids) + tail))
        ids += tokens
    array = np.array(ids, dtype=np.int32)
    images = _images(array, num_images, tokenizer)
    ranges = np.array(_without_images(learned, images), dtype=np.int32).reshape(-1, 2)
    return CompactText(array, ranges, images)


def _learned(tokenizer: Tokenizer, template: Template, message: Message, tokens: Sequence[int]) -> tuple[int, int]:
    """Return the range of an answer's tokens that is learned: behind what opens it, up to the end of the turn.

    Where text is not stripped, an answer may begin with white space that is one token with the end of what opens it.
    The published code for such templates leaves out as many tokens as that has alone.
    """
    assert message.learned_from is not None, "no answer"
    end = len(tokens)
    if message.ends:
        end -= tokens[::-1].index(tokenizer.token_id(template.end))
    if template.strips:
        return tokenizer.prefix_length(message.text, tokens, message.learned_from), end
    return min(len(tokenizer.encode_known(message.text[: message.learned_from])), end), end


def expand(text: CompactText, num_tiles: Sequence[int], tokens_per_tile: int) -> tuple[Tensor, Tensor]:
    """Give every image its tokens; return input_ids and labels, int64 [L]."""
    labels = np.full(len(text.ids), IGNORE_INDEX, dtype=np.int64)
    for start, end in text.supervised.tolist():
        labels[start:end] = text.ids[start:end]
    repeats = np.ones(len(text.ids), dtype=np.int64)
    repeats[text.images] = np.asarray(num_tiles, dtype=np.int64) * tokens_per_tile
    ids = np.repeat(text.ids.astype(np.int64), repeats)
    return torch.from_numpy(ids), torch.from_numpy(np.repeat(labels, repeats))


def image_starts(text: CompactText, num_tiles: Sequence[int], tokens_per_tile: int) -> list[int]:
    """Return where in the expanded text each image's first token stands."""
    extra = np.asarray(num_tiles, dtype=np.int64) * tokens_per_tile - 1
    return (text.images + np.cumsum(extra) - extra).tolist()


def _without_images(ranges: Sequence[tuple[int, int]], images: np.ndarray) -> list[tuple[int, int]]:
    """Cut the images, marks included, out of what is learned."""
    parts: list[tuple[int, int]] = []
    for start, end in ranges:
        for image in (
            images[np.searchsorted(images, start) : np.searchsorted(images, end)].tolist() if len(images) else ()
        ):
            parts.append((start, image - 1))
            start = image + 2
        parts.append((start, end))
    return [part for part in parts if part[0] < part[1]]


def _images(ids: np.ndarray, num_images: int, tokenizer: Tokenizer) -> np.ndarray:
    """Find the images; each must stand between its two marks, and nothing else may look like one."""
    images = np.flatnonzero(ids == tokenizer.img_context_id)
    for name, token in (
        (IMG_START, tokenizer.img_start_id),
        (IMG_CONTEXT, tokenizer.img_context_id),
        (IMG_END, tokenizer.img_end_id),
    ):
        if (found := np.count_nonzero(ids == token)) != num_images:
            raise DataError(
                f"{found} {name} tokens in the text, but {num_images} images: the text itself spells it; where it "
                f"names an image, write {PLACEHOLDER} there, and give the path in the field 'image'"
            )
    bad = (ids[images - 1] != tokenizer.img_start_id) | (ids[images + 1] != tokenizer.img_end_id)
    assert not bad.any(), "marks of images in the wrong order"
    return images


def with_placeholder(turns: Turns, placeholder: str = PLACEHOLDER) -> list[tuple[str, str]]:
    """Put a placeholder before the first question if no turn has one, as single images and videos allow."""
    turns = list(turns)
    if not any(placeholder in text for _, text in turns):
        first = next((number for number, (role, _) in enumerate(turns) if role != SYSTEM), None)
        if first is not None:
            role, text = turns[first]
            turns[first] = (role, f"{placeholder}\n{text}")
    return turns


def _with_image_tokens(turns: Turns, num_images: int) -> list[tuple[str, str]]:
    found = sum(text.count(PLACEHOLDER) for _, text in turns)
    if found != num_images:
        if not num_images:
            advice = "give their paths, or leave the placeholders out"
        elif not found:
            advice = f"write {PLACEHOLDER} in the text where each belongs"
        else:
            advice = "the text needs one for each image"
        raise DataError(f"{found} {PLACEHOLDER} placeholders in the conversation, but {num_images} images: {advice}")
    image = IMG_START + IMG_CONTEXT + IMG_END
    return [(role, text.replace(PLACEHOLDER, image)) for role, text in turns]


REMEDY = f"write {PLACEHOLDER} once for each image, or leave all of them out: the images then stand before the question"
"""What a user can do where placeholders and images differ in number."""


def image_lines(count: int, before: int = 0) -> str:
    """Return the lines that show images, each ending in a line break.

    Args:
        count: how many images there are.
        before: how many images the conversation has shown already; the numbers go on behind them.
    """
    if count == 1:
        return f"{PLACEHOLDER}\n"
    return "".join(f"Image-{before + number}: {PLACEHOLDER}\n" for number in range(1, count + 1))


def with_images(turns: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Put images before the first question of a conversation, unless a turn says where one of them belongs.

    Args:
        turns: (role, text).
        count: how many images there are.
    """
    if count == 0 or any(PLACEHOLDER in text for _, text in turns):
        return list(turns)
    first = next((number for number, (role, _) in enumerate(turns) if role == "human"), 0)
    return [(role, image_lines(count) + text if number == first else text) for number, (role, text) in enumerate(turns)]
