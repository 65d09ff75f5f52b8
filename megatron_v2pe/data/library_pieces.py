"""A tokenizer whose pieces the `tokenizers` library finds: byte-level BPE of Qwen and Llama-3, Llama-2's and Phi-3's.

The library cuts out special tokens itself, with their rules about blanks around them. Where text is only cut by one
pattern of GPT-2's kind and nothing else is done to it, words met before are remembered, as `data.word_pieces` does for
SentencePiece: no match of such a pattern holds a blank behind another character that is no white space, so a text may
be cut before all such blanks and the parts encoded one by one, with the ids of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.data.special_tokens import SpecialTokens
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.library_files import LibraryFiles, open_library
from megatron_v2pe.foreign.library_rules import CUT_AT_BLANKS
from megatron_v2pe.foreign.tokenizer_files import AddedToken
from megatron_v2pe.foreign.tokenizer_settings import TokenizerSettings, TokenizerSource

_WORDS = re.compile(r"\s*\S*(?:[^\S ]\s*\S*)*")
"""Parts that end before a blank behind which no white space stands; they follow each other without a gap."""
_MOST_WORDS, _LONGEST_WORD = 1 << 18, 64


class LibraryPieces:
    """Ids of texts, and texts of ids, by the `tokenizers` library."""

    def __init__(
        self, folder: Path, source: TokenizerSource, settings: TokenizerSettings, more: Sequence[AddedToken] = ()
    ) -> None:
        """Open the tokenizer of a folder, with `more` tokens of their own that its files do not state.

        Raises:
            ConfigError: see `foreign.library_files.open_library`.
        """
        files = open_library(folder, source, settings, ConfigError, more)
        self._library = files.library
        self._given = folder, source, settings, tuple(more)
        self.special = {name: token.id for name, token in files.added.items()}
        self._names = {number: name for name, number in self.special.items()}
        self.bos_id, self.eos_id, self.before = files.bos, files.eos, files.before
        self.pieces, self.digest, self.file = files.pieces, files.digest, source.file
        self.size = max([self.pieces, *(number + 1 for number in self.special.values())])
        self._byte_level = files.byte_level
        self._cut = SpecialTokens(self.special) if _remembers_words(files) else None
        self._known: dict[str, list[int]] = {}

    def again(self) -> tuple[Any, ...]:
        """Return what another process makes the same of."""
        return self._given

    def with_tokens(self, tokens: Sequence[AddedToken]) -> LibraryPieces:
        """Return the same with further tokens of their own; see `data.tokenizer.Tokenizer.with_tokens`."""
        folder, source, settings, more = self._given
        return LibraryPieces(folder, source, settings, (*more, *tokens))

    def known_id(self, text: str) -> int | None:
        """Return the id of the token or piece that is spelled so; None where there is none."""
        return self._library.token_to_id(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; raises what the library raises."""
        if self._cut is None:
            return self._library.encode(text, add_special_tokens=False).ids
        return self._cut.encode(text, self._by_words)

    def _by_words(self, text: str) -> list[int]:
        ids: list[int] = []
        known = self._known
        for word in _WORDS.findall(text):
            found = known.get(word)
            ids += self._look_up(word) if found is None else found
        return ids

    def _look_up(self, word: str) -> list[int]:
        ids = self._library.encode(word, add_special_tokens=False).ids
        if len(word) <= _LONGEST_WORD:
            if len(self._known) >= _MOST_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return self._library.decode([number for number in ids if 0 <= number < self.size], skip_special_tokens=True)

    def bytes_of(self, number: int) -> int:
        """Return how many bytes of a text an id stands for."""
        if number in self._names:
            return len(self._names[number].encode())
        piece: str = self._library.id_to_token(number) or ""
        if self._byte_level:
            return len(piece)
        if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            return 1
        return len(piece.replace("\u2581", " ").encode())


def _remembers_words(files: LibraryFiles) -> bool:
    """Tell whether a text may be cut before blanks: by its pattern, and if no special token asks for its neighbours."""
    plain = not any(
        token.lstrip or token.rstrip or token.single_word or token.normalized for token in files.added.values()
    )
    return plain and files.words in CUT_AT_BLANKS
