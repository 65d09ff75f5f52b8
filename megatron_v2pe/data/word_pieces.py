"""SentencePiece's BPE, exactly, at several times its speed: word by word, with the words met before remembered.

A BPE merge joins neighbours into a piece of the vocabulary. Where no piece holds some character followed by a space,
no merge can cross from that character to the space, whatever else stands there; a text may be cut at all such places
and the parts encoded one by one, with the ids of the whole. Words repeat, so most parts are looked up. This needs a
model that leaves text as it is but for spaces (no normalisation, no space put in front, none removed); with others a
text is encoded whole. SentencePiece's own cost grows with the length of what it is given at once.

On 420,000 characters of English pages with InternVL2's tokenizer: 25.2 million characters a second, SentencePiece 4.2,
the `tokenizers` library 3.6; line by line 21.8, 6.0 and 5.8; all three give equal ids
(`python tools/benchmark.py tokenizing --tokenizer FOLDER --texts FILES`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_SPACE = "\u2581"
"""How pieces spell a space."""
_MOST_WORDS, _LONGEST_WORD = 1 << 18, 64
"""Words remembered, and characters of one; text without spaces would fill the memory and hardly repeat."""


class WordPieces:
    """Encodes text without special tokens."""

    def __init__(self, processor: Any) -> None:
        """Take a `SentencePieceProcessor`."""
        self._encode = processor.encode
        self._words = _word_pattern(processor)
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; raises what SentencePiece raises."""
        if self._words is None:
            return self._encode(text)
        ids: list[int] = []
        known = self._known
        for word in self._words.findall(text):
            found = known.get(word)
            ids += self._look_up(word) if found is None else found
        return ids

    def _look_up(self, word: str) -> list[int]:
        ids = self._encode(word)
        if len(word) <= _LONGEST_WORD:
            if len(self._known) >= _MOST_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids


def _word_pattern(processor: Any) -> re.Pattern[str] | None:
    """Return a pattern whose matches, one after the other, are parts no merge leaves; None if it cannot tell.

    Where pieces such as `, ` or `.  ` exist, merges cross from the comma, the point and the space to a space, and the
    text is cut before all other spaces: `a, b c` becomes `a, b` and ` c`.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages

    model: Any = messages.ModelProto()  # type: ignore[attr-defined]  # made when imported, unseen by type checkers
    model.ParseFromString(processor.serialized_model_proto())
    rules, trainer = model.normalizer_spec, model.trainer_spec
    changes_text = rules.precompiled_charsmap or rules.add_dummy_prefix or rules.remove_extra_whitespaces
    if trainer.model_type != trainer.BPE or changes_text or not rules.escape_whitespaces:
        return None
    crossed = "".join(map(re.escape, sorted(_crossed_before_space(piece.piece for piece in model.pieces))))
    no_space = f"[^ {_SPACE}]*"
    crossing = f"(?<=[{crossed} ])[ {_SPACE}]"  # a space that a merge may reach from the character before it
    return re.compile(f"(?s:.){no_space}(?:{crossing}{no_space})*")


def _crossed_before_space(pieces: Iterable[str]) -> set[str]:
    """Return the characters that stand before a space inside of some piece; the space is taken for one of them."""
    return {a for piece in pieces for a, b in zip(piece, piece[1:], strict=False) if b == _SPACE} | {_SPACE}
