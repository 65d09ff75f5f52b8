"""A tokenizer whose pieces SentencePiece finds, as InternLM2's class has it: each part between special tokens alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from megatron_v2pe.data.special_tokens import SpecialTokens
from megatron_v2pe.data.word_pieces import WordPieces
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_files import LARGEST_ID, MODEL, AddedToken, load_pieces

BOS, EOS = "<s>", "</s>"


class SentencePieces:
    """Ids of texts, and texts of ids, by a SentencePiece model."""

    def __init__(
        self,
        model_file: str,
        special: Mapping[str, int],
        *,
        adds_bos: bool = True,
        eos: str | None = None,
        shown: Collection[str] = (),
    ) -> None:
        """Load a SentencePiece model.

        Args:
            model_file: `tokenizer.model`.
            special: tokens of their own, name -> id; `<s>` and `</s>` are known from the model.
            adds_bos: whether `<s>` stands before every text.
            eos: the token that ends a text, where it is not the model's own.
            shown: tokens of their own that are part of a text; the others are left out where ids become text.

        Raises:
            ConfigError: the file is missing or no SentencePiece model, a special token is empty, or its id no such
                number or not that of the model.
        """
        self.model_file, self.adds_bos, self._eos = model_file, adds_bos, eos
        self._shown = frozenset(shown) & special.keys()
        self._sp = load_pieces(model_file, ConfigError)
        self._words = WordPieces(self._sp)
        names = {BOS: self._sp.bos_id(), EOS: self._sp.eos_id(), "<unk>": self._sp.unk_id()}
        self._check(special, names)
        self.special = {name: number for name, number in names.items() if number >= 0} | dict(special)
        self.bos_id, self.eos_id = self.special.get(BOS), self.special.get(eos or EOS, self.special.get(EOS))
        if (null := _null_piece(self._sp)) is not None:
            self.special["\0"] = null
        self._names = {number: name for name, number in self.special.items()}
        self.before = (self.bos_id,) if adds_bos and self.bos_id is not None else ()
        self.pieces, self.file = self._sp.get_piece_size(), MODEL
        self.size = max([self.pieces, *(number + 1 for number in self.special.values())])
        self._cut = SpecialTokens(self.special)

    def again(self) -> tuple[Any, ...]:
        """Return what another process makes the same of."""
        given = {name: number for name, number in self.special.items() if name != "\0"}
        return self.model_file, given, self.adds_bos, self._eos, self._shown

    def with_tokens(self, tokens: Sequence[AddedToken]) -> SentencePieces:
        """Return the same with further tokens of their own; see `data.tokenizer.Tokenizer.with_tokens`."""
        path, special, adds_bos, eos, shown = self.again()
        own = special | {token.content: token.id for token in tokens}
        shown = shown | {token.content for token in tokens if not token.special}
        return SentencePieces(path, own, adds_bos=adds_bos, eos=eos, shown=shown)

    def known_id(self, text: str) -> int | None:
        """Return the id of the token or piece that is spelled so; None where there is none."""
        number = self._sp.piece_to_id(text)
        return self.special.get(text, None if number == self._sp.unk_id() else number)

    @property
    def digest(self) -> str:
        """SHA-256 of the SentencePiece model and the special tokens."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(read_bytes(self.model_file, ConfigError))
        digest.update(json.dumps(sorted(self.special.items())).encode())
        if not self.adds_bos:
            digest.update(b"without a token before the text")
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; raises what SentencePiece raises."""
        return self._cut.encode(text, self._words.encode)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens are left out, but for those that are shown."""
        parts: list[str] = []
        run: list[int] = []
        for number in [*ids, None]:
            if number is not None and number not in self._names and number < self.pieces:
                run.append(number)
            elif run:
                parts.append(self._sp.decode(run))
                run = []
            if number is not None and ((name := self._names.get(number)) == "\0" or name in self._shown):
                parts.append(name or "")
        return "".join(parts)

    def bytes_of(self, number: int) -> int:
        """Return how many bytes of a text an id stands for."""
        if number in self._names:
            return len(self._names[number].encode())
        if self._sp.is_byte(number):
            return 1
        return len(self._sp.id_to_piece(number).replace("\u2581", " ").encode())

    def _check(self, special: Mapping[str, int], known: Mapping[str, int]) -> None:
        where, taken = printable(self.model_file), {number: name for name, number in known.items() if number >= 0}
        for name, number in special.items():
            shown = printable(name)[:80]
            if not name or not 0 <= number <= LARGEST_ID:
                raise ConfigError(f"{where}: special token {shown!r}: found id {number}, expected 0 to {LARGEST_ID}")
            if known.get(name, -1) not in (-1, number) or taken.get(number, name) != name:
                found = ", ".join(f"{known_name} {known_id}" for known_name, known_id in known.items())
                raise ConfigError(f"{where}: special token {shown!r}: found id {number}, but the model has {found}")


def _null_piece(sp: Any) -> int | None:
    """Id of a piece that is the character U+0000: newer SentencePiece versions know it but no longer use it."""
    for number in range(sp.get_piece_size()):
        if sp.is_unused(number) and sp.id_to_piece(number) == "\0":
            return number
    return None
