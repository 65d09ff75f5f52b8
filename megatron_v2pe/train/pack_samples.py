"""A few packs of a run as one can look at them: their texts, what of them is learned, small pictures of their tiles.

Packs are taken at steps 1, 3, 10, 30, 100 and so on, from what the first reader reads anyway, as the model gets it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from PIL import Image
from torch import Tensor

from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import IGNORE_INDEX, Batch

MOST_DOCUMENTS, MOST_TILES, MOST_TOKENS = 8, 10, 400
"""How much is kept of a pack, and of each document: tiles, and tokens of text (the first and the last half)."""
_SIDE, _GAP, _QUALITY = 80, 2, 72


@dataclass(frozen=True)
class PackSample:
    """A pack in plain numbers and text, and its pictures."""

    step: int
    content: dict[str, Any]
    """Plain JSON: what the page shows (`train/page/run_files.py` reads it)."""
    pictures: dict[str, bytes]
    """JPEG files by the names that `content` gives."""


def is_kept(step: int) -> bool:
    """Return whether a pack of a step, counted from 1, is kept."""
    while step % 10 == 0:
        step //= 10
    return step in (1, 3)


def sample_of(batch: Batch, step: int, tokenizer: Tokenizer) -> PackSample:
    """Describe a micro-batch as its reader has it, with all its tiles."""
    pictures: dict[str, bytes] = {}
    documents: list[dict[str, Any]] = []
    names = {number: name for name, number in tokenizer.special.items()}
    first_token = first_tile = 0
    described = zip(batch.sources, batch.seqlens, batch.document_tiles, strict=True)
    for number, (source, tokens, tiles) in enumerate(islice(described, MOST_DOCUMENTS), 1):
        place = slice(first_token, first_token + tokens)
        document: dict[str, Any] = {
            "dataset": source.dataset,
            "line": source.line,
            "tokens": tokens,
            "tiles": tiles,
            "learned": int((batch.labels[place] != IGNORE_INDEX).sum()),
            "parts": list(_parts(batch.input_ids[place], batch.labels[place], tokenizer, names)),
        }
        if tiles:
            document["picture"] = f"step_{step:08d}_{number}.jpg"
            pictures[document["picture"]] = _strip(batch.tiles[first_tile : first_tile + min(tiles, MOST_TILES)])
        documents.append(document)
        first_token, first_tile = first_token + tokens, first_tile + tiles
    content = {
        "step": step,
        "documents": documents,
        "all_documents": len(batch.seqlens),
        "tokens": sum(batch.seqlens),
        "tiles": sum(batch.num_tiles),
    }
    return PackSample(step, content, pictures)


def _parts(ids: Tensor, labels: Tensor, tokenizer: Tokenizer, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    """Yield runs of text: what it says, and whether it is learned. Image tokens are counted, not written."""
    context, numbers = tokenizer.img_context_id, ids.tolist()
    learned = [False, *(labels[:-1] != IGNORE_INDEX).tolist()]  # label t is about token t + 1
    marked = list(zip(numbers, learned, strict=True))
    half = MOST_TOKENS // 2
    wordy = [index for index, number in enumerate(numbers) if number != context]
    if len(wordy) > MOST_TOKENS:
        begin, end = wordy[half], wordy[-half]
        yield from _runs(marked[:begin], tokenizer, names, context)
        yield {"text": f" … {end - begin:,} tokens left out … ", "learned": False, "note": True}
        marked = marked[end:]
    yield from _runs(marked, tokenizer, names, context)


def _runs(
    marked: Sequence[tuple[int, bool]], tokenizer: Tokenizer, names: dict[int, str], context: int
) -> Iterator[dict[str, Any]]:
    for (is_image, is_learned), run in groupby(marked, key=lambda one: (one[0] == context, one[1])):
        numbers = [number for number, _ in run]
        if is_image:
            yield {"text": f"[{len(numbers)} image tokens]", "learned": False, "note": True}
            continue
        pieces = [
            "".join(names[number] for number in group) if special else tokenizer.decode(group)
            for special, group in ((key, list(part)) for key, part in groupby(numbers, key=names.__contains__))
        ]
        yield {"text": "".join(pieces), "learned": is_learned}


def _strip(tiles: Tensor) -> bytes:
    """Draw tiles uint8 [n, H, W, 3] side by side, small."""
    strip = Image.new("RGB", (len(tiles) * (_SIDE + _GAP) - _GAP, _SIDE), "white")
    for number, tile in enumerate(tiles.numpy()):
        small = Image.fromarray(tile).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        strip.paste(small, (number * (_SIDE + _GAP), 0))
    stream = io.BytesIO()
    strip.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
