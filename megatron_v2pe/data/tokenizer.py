"""The tokenizer of an InternVL2 checkpoint: SentencePiece, and special tokens that no piece runs across.

Reads the files of the HF layout (`tokenizer.model`, `added_tokens.json`, `tokenizer_config.json`) without any code of
the checkpoint. Special tokens are cut out first, longest name first; SentencePiece sees what lies between them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.word_pieces import WordPieces
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_files import LARGEST_ID, MODEL, check_rows, load_pieces, special_tokens

IMG_START, IMG_END, IMG_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
NEEDED = (IMG_START, IMG_END, IMG_CONTEXT)
"""Tokens an InternVL2 tokenizer must have."""
BOS, EOS = "<s>", "</s>"


class Tokenizer:
    """A tokenizer: it turns text into token ids and ids back into text."""

    def __init__(self, model_file: str | Path, special: dict[str, int]) -> None:
        """Load a SentencePiece model.

        Args:
            model_file: `tokenizer.model`.
            special: tokens of their own, name -> id; `<s>` and `</s>` are known from the model.

        Raises:
            ConfigError: the file is missing or no SentencePiece model, a special token is empty, or its id no such
                number or not that of the model.
        """
        self.model_file = str(model_file)
        self._sp = load_pieces(self.model_file, ConfigError)
        self._words = WordPieces(self._sp)
        names = {BOS: self._sp.bos_id(), EOS: self._sp.eos_id(), "<unk>": self._sp.unk_id()}
        self._check(special, names)
        self.special = {name: number for name, number in names.items() if number >= 0} | special
        self.bos_id, self.eos_id = self._sp.bos_id(), self._sp.eos_id()
        if (null := _null_piece(self._sp)) is not None:
            self.special["\0"] = null
        self._names = {number: name for name, number in self.special.items()}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer files of an HF folder, or a `.model` file and the JSON files beside it.

        Raises:
            ConfigError: no `tokenizer.model`, one that is damaged, or a JSON file that is; see
                `foreign.tokenizer_files.special_tokens`.
        """
        path = Path(folder)
        model, path = (path, path.parent) if path.is_file() else (path / MODEL, path)
        return cls(model, special_tokens(path, ConfigError))

    @classmethod
    def of_model(cls, folder: str | Path, rows: int | None, template: str | None = None) -> Tokenizer:
        """Read the tokenizer of an InternVL2 model, and check that the two go together; every tool opens it by this.

        Args:
            folder: see `from_folder`.
            rows: vocabulary rows of the model; None where there is no model to compare with.
            template: name of the conversation template in which it is used; None where there is none yet.

        Raises:
            ConfigError: see `from_folder` and `check_rows`; it lacks the tokens of images, or the token that ends an
                answer in `template`, or the template is unknown.
        """
        tokenizer = cls.from_folder(folder)
        if missing := tokenizer.missing():
            raise ConfigError(
                f"{printable(folder)}: the tokenizer lacks {', '.join(missing)}; it is not an InternVL2 tokenizer; "
                "copy tokenizer.model, tokenizer_config.json and added_tokens.json of the model's own folder"
            )
        if rows is not None:
            check_rows(tokenizer._sp.get_piece_size(), tokenizer.special, rows, folder, ConfigError)
        if template is not None and (end := get_template(template).end) not in tokenizer.special:
            raise ConfigError(
                f"{printable(tokenizer.model_file)}: the tokenizer has no token {end}, which ends an answer in "
                f"conversation template {template!r}; name the template the checkpoint was made with"
            )
        return tokenizer

    def __len__(self) -> int:
        """Return the number of ids, special tokens included."""
        return max([self._sp.get_piece_size(), *(number + 1 for number in self.special.values())])

    def __reduce__(self) -> tuple[Any, ...]:
        """Reload in another process."""
        return Tokenizer, (self.model_file, {k: v for k, v in self.special.items() if k != "\0"})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the SentencePiece model and the special tokens: equal for tokenizers that give equal ids."""
        digest = hashlib.sha256(read_bytes(self.model_file, ConfigError))
        digest.update(json.dumps(sorted(self.special.items())).encode())
        return digest.hexdigest()

    def missing(self) -> list[str]:
        """Return the image tokens this tokenizer lacks."""
        return [name for name in NEEDED if name not in self.special]

    @property
    def img_start_id(self) -> int:
        """Id of `<img>`."""
        return self.special[IMG_START]

    @property
    def img_end_id(self) -> int:
        """Id of `</img>`."""
        return self.special[IMG_END]

    @property
    def img_context_id(self) -> int:
        """Id of `<IMG_CONTEXT>`, one token of an image."""
        return self.special[IMG_CONTEXT]

    def token_id(self, name: str) -> int:
        """Return the id of a special token.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.special:
            raise ConfigError(f"{printable(self.model_file)}: the tokenizer has no token {printable(name)[:80]}")
        return self.special[name]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; no `<s>` is put before it.

        Raises:
            DataError: the text cannot be encoded: half a surrogate pair.
        """
        ids: list[int] = []
        end = 0
        first, pattern = self._common_pattern
        if any(character in text for character in self._first_characters if character != first):
            pattern = self._pattern
        for match in pattern.finditer(text):
            if match.start() > end:
                ids += self._pieces(text[end : match.start()])
            repeats, name = match[0], match[0]
            if match.lastgroup == "context":
                name = IMG_CONTEXT
            ids += [self.special[name]] * (len(repeats) // len(name))
            end = match.end()
        return ids + (self._pieces(text[end:]) if end < len(text) else [])

    @property
    def encode_known(self) -> Callable[[str], tuple[int, ...]]:
        """`encode` for texts that come again and again, such as those of a template: the last few are remembered."""
        return self._remembered

    def _pieces(self, text: str) -> list[int]:
        try:
            return self._words.encode(text)
        except Exception as error:  # third-party: RuntimeError or UnicodeEncodeError, by version
            raise DataError(f"text cannot be tokenised: {type(error).__name__}: {error}") from error

    def prefix_length(self, text: str, ids: Sequence[int], characters: int) -> int:
        """Return how many of the `ids` of `text` lie within its first `characters`; one across the border does not."""
        head = self.encode_known(text[:characters])
        if tuple(ids[: len(head)]) == head:
            return len(head)
        remaining, count = len(text[:characters].encode()), 0
        while remaining >= (size := self._bytes(ids[count])) and remaining:
            remaining -= size
            count += 1
        return count

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        parts: list[str] = []
        run: list[int] = []
        for number in [*ids, None]:
            if number is not None and number not in self._names and number < self._sp.get_piece_size():
                run.append(number)
            elif run:
                parts.append(self._sp.decode(run))
                run = []
            if number is not None and self._names.get(number) == "\0":
                parts.append("\0")
        return "".join(parts)

    def _check(self, special: dict[str, int], known: dict[str, int]) -> None:
        where, taken = printable(self.model_file), {number: name for name, number in known.items() if number >= 0}
        for name, number in special.items():
            shown = printable(name)[:80]
            if not name or not 0 <= number <= LARGEST_ID:
                raise ConfigError(f"{where}: special token {shown!r}: found id {number}, expected 0 to {LARGEST_ID}")
            if known.get(name, -1) not in (-1, number) or taken.get(number, name) != name:
                found = ", ".join(f"{known_name} {known_id}" for known_name, known_id in known.items())
                raise ConfigError(f"{where}: special token {shown!r}: found id {number}, but the model has {found}")

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return self._pattern_of(self.special)

    @cached_property
    def _first_characters(self) -> list[str]:
        """First characters of special tokens, the most frequent first."""
        return [character for character, _ in Counter(name[0] for name in self.special).most_common()]

    @cached_property
    def _common_pattern(self) -> tuple[str, re.Pattern[str]]:
        """The most frequent first character, and a pattern for the tokens that begin with it: several times as fast."""
        first = self._first_characters[0]
        return first, self._pattern_of([name for name in self.special if name.startswith(first)])

    @staticmethod
    def _pattern_of(special: Iterable[str]) -> re.Pattern[str]:
        """Return a pattern that matches any of these tokens, the longest first, and a run of `<IMG_CONTEXT>` at once.

        A first character that all of them share stands once before the alternatives: `<(?:img>|/img>|...)` fails at
        once where there is no `<`.
        """
        names = sorted(special, key=len, reverse=True)
        shared = names[0][0] if len({name[0] for name in names}) == 1 else ""
        alternatives: list[str] = []
        if IMG_CONTEXT in names:
            rest = re.escape(IMG_CONTEXT[len(shared) :])
            alternatives.append(f"(?P<context>{rest}(?:{re.escape(IMG_CONTEXT)})*)")
        alternatives += [re.escape(name[len(shared) :]) for name in names if name != IMG_CONTEXT]
        return re.compile(f"{re.escape(shared)}(?:{'|'.join(alternatives)})")

    @cached_property
    def _remembered(self) -> Callable[[str], tuple[int, ...]]:
        return lru_cache(maxsize=64)(lambda text: tuple(self.encode(text)))

    def _bytes(self, number: int) -> int:
        if number in self._names:
            return len(self._names[number].encode())
        if self._sp.is_byte(number):
            return 1
        return len(self._sp.id_to_piece(number).replace("\u2581", " ").encode())


def _null_piece(sp: Any) -> int | None:
    """Id of a piece that is the character U+0000: newer SentencePiece versions know it but no longer use it."""
    for number in range(sp.get_piece_size()):
        if sp.is_unused(number) and sp.id_to_piece(number) == "\0":
            return number
    return None
