"""The tokenizer of an InternVL checkpoint, of whichever kind: text becomes ids, ids become text.

Reads the files of the HF layout without any code of the checkpoint: `tokenizer.model` by SentencePiece, or
`tokenizer.json`, or `vocab.json` with `merges.txt`, by the `tokenizers` library (which of them:
`foreign.tokenizer_settings`). Special tokens are cut out first, longest name first; pieces lie between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from megatron_v2pe.data.conversation import fitting_templates, get_template
from megatron_v2pe.data.library_pieces import LibraryPieces
from megatron_v2pe.data.sentence_pieces import BOS, EOS, SentencePieces
from megatron_v2pe.data.special_tokens import IMG_CONTEXT, IMG_END, IMG_START, NEEDED
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_files import MODEL, AddedToken, added_tokens, check_rows, load_pieces, shown_tokens
from megatron_v2pe.foreign.tokenizer_settings import TokenizerSettings, TokenizerSource, source_of

__all__ = ["BOS", "EOS", "IMG_CONTEXT", "IMG_END", "IMG_START", "NEEDED", "PieceFinder", "Tokenizer"]


class PieceFinder(Protocol):
    """What finds the pieces of a text: SentencePiece or the `tokenizers` library."""

    special: dict[str, int]
    """Tokens of their own, name -> id."""
    bos_id: int | None
    eos_id: int | None
    before: tuple[int, ...]
    """Ids that stand before every text."""
    pieces: int
    """Ids without those of tokens of their own."""
    file: str
    """Name of the file that holds them."""
    size: int
    """One more than the largest id."""

    @property
    def digest(self) -> str:
        """SHA-256 of all on which ids depend."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        ...

    def bytes_of(self, number: int) -> int:
        """Return how many bytes of a text an id stands for."""
        ...

    def again(self) -> tuple[Any, ...]:
        """Return what another process makes the same of."""
        ...

    def with_tokens(self, tokens: Sequence[AddedToken]) -> PieceFinder:
        """Return the same with further tokens of their own."""
        ...

    def known_id(self, text: str) -> int | None:
        """Return the id of the token or piece that is spelled so; None where there is none."""
        ...


class Tokenizer:
    """A tokenizer: it turns text into token ids and ids back into text."""

    def __init__(self, model_file: str | Path, special: Mapping[str, int], pieces: PieceFinder | None = None) -> None:
        """Load a SentencePiece model, or take pieces of another kind.

        Args:
            model_file: `tokenizer.model`; where `pieces` are given, the file or folder to name in errors.
            special: tokens of their own of a SentencePiece model, name -> id; `<s>` and `</s>` are known from it.
            pieces: what finds pieces; by default the SentencePiece model.

        Raises:
            ConfigError: see `SentencePieces`.
        """
        self.model_file = str(model_file)
        self._engine: PieceFinder = SentencePieces(self.model_file, special) if pieces is None else pieces
        self.special = self._engine.special
        self.bos_id, self.eos_id, self.before = self._engine.bos_id, self._engine.eos_id, self._engine.before

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer files of an HF folder, or a file of them and those beside it.

        Raises:
            ConfigError: no file of a tokenizer, or one that is damaged; see `foreign.tokenizer_files.added_tokens` and
                `foreign.library_files.open_library`.
        """
        path = Path(folder)
        model, path = (path, path.parent) if path.is_file() else (path / MODEL, path)
        settings = TokenizerSettings.read(path, ConfigError)
        source = source_of(path, settings.name, ConfigError)
        if model.suffix == ".model" and model.name != MODEL:
            source = TokenizerSource.SENTENCE_PIECES
        if source is None:
            load_pieces(model, ConfigError)
        if source is None or source is TokenizerSource.SENTENCE_PIECES:
            adds_bos = settings.adds_bos is not False
            special = _without_rules(added_tokens(path, ConfigError), printable(path))
            shown = shown_tokens(path, ConfigError).difference(NEEDED)
            pieces = SentencePieces(str(model), special, adds_bos=adds_bos, eos=settings.eos, shown=shown)
            return cls(model, special, pieces)
        return cls(path / source.file, {}, LibraryPieces(path, source, settings))

    @classmethod
    def of_model(cls, folder: str | Path, rows: int | None, template: str | None = None) -> Tokenizer:
        """Read the tokenizer of an InternVL model, and check that the two go together; every tool opens it by this.

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
                f"{printable(folder)}: the tokenizer lacks {', '.join(missing)}; it is not an InternVL tokenizer; "
                "copy the tokenizer's files (tokenizer*.*, added_tokens.json, vocab.json, merges.txt) of the model's "
                "own folder"
            )
        if rows is not None:
            tokenizer.check_rows(rows, folder)
        if template is not None:
            tokenizer.check_template(template)
        return tokenizer

    def with_tokens(self, tokens: Sequence[AddedToken]) -> Tokenizer:
        """Return this tokenizer with further tokens of their own, as it will be opened once its files state them.

        Args:
            tokens: with their ids, the first of which is the number of ids so far.

        Raises:
            ConfigError: a token has rules about blanks beside it, which this kind of tokenizer has not.
        """
        if isinstance(self._engine, SentencePieces):
            _without_rules({token.content: token for token in tokens}, printable(self.model_file))
        return Tokenizer(self.model_file, {}, self._engine.with_tokens(tokens))

    def known_id(self, text: str) -> int | None:
        """Return the id of the token or piece that is spelled so; None where there is none."""
        return self._engine.known_id(text)

    def check_rows(self, rows: int, folder: str | Path) -> None:
        """Check that a model of `rows` vocabulary rows has one for every id; `folder` is named in the error.

        Raises:
            ConfigError: see `foreign.tokenizer_files.check_rows`.
        """
        check_rows(self._engine.pieces, self.special, rows, folder, ConfigError, self._engine.file)

    def check_template(self, name: str) -> None:
        """Check that a conversation template belongs to this tokenizer: it has a token for each mark of the template.

        Raises:
            ConfigError: the template is unknown, or a mark is no token; names the templates that fit.
        """
        template = get_template(name)
        if absent := [mark for mark in template.marks if mark not in self.special]:
            role = "which ends an answer" if template.end in absent else "a mark of a turn"
            mark = template.end if template.end in absent else absent[0]
            fit = ", ".join(fitting_templates(self.special))
            raise ConfigError(
                f"{printable(self.model_file)}: the tokenizer has no token {mark}, {role} in "
                f"conversation template {name!r}; name the template the checkpoint was made with"
                + (f": those whose tokens it has are {fit}" if fit else "")
            )

    def __len__(self) -> int:
        """Return the number of ids, special tokens included."""
        return self._engine.size

    def __reduce__(self) -> tuple[Any, ...]:
        """Reload in another process."""
        return _again, (self.model_file, type(self._engine), self._engine.again())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all on which ids depend: equal for tokenizers that give equal ids."""
        return self._engine.digest

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
        """Return the ids of `text`; nothing is put before it.

        Raises:
            DataError: the text cannot be encoded: half a surrogate pair.
        """
        try:
            return self._engine.encode(text)
        except Exception as error:  # third-party: RuntimeError, TypeError or UnicodeEncodeError, by library and version
            raise DataError(f"text cannot be tokenised: {type(error).__name__}: {error}") from error

    @property
    def encode_known(self) -> Callable[[str], tuple[int, ...]]:
        """`encode` for texts that come again and again, such as those of a template: the last few are remembered."""
        return self._remembered

    def prefix_length(self, text: str, ids: Sequence[int], characters: int) -> int:
        """Return how many of the `ids` of `text` lie within its first `characters`; one across the border does not."""
        head = self.encode_known(text[:characters])
        if tuple(ids[: len(head)]) == head:
            return len(head)
        remaining, count = len(text[:characters].encode()), 0
        while count < len(ids) and remaining >= (size := self._engine.bytes_of(ids[count])) and remaining:
            remaining -= size
            count += 1
        return count

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return self._engine.decode(ids)

    @cached_property
    def _remembered(self) -> Callable[[str], tuple[int, ...]]:
        return lru_cache(maxsize=64)(lambda text: tuple(self.encode(text)))


def _without_rules(tokens: Mapping[str, AddedToken], where: str) -> dict[str, int]:
    """Return the ids of tokens by name; refuse those that take white space beside them, as no such tokenizer has it."""
    for name, token in tokens.items():
        if token.lstrip or token.rstrip or token.single_word:
            raise ConfigError(
                f"{where}: token {printable(name)[:80]!r} has lstrip, rstrip or single_word, which is read "
                "for other classes of tokenizers; name the class (tokenizer_class), or set the field to false"
            )
    return {name: token.id for name, token in tokens.items()}


def _again(model_file: str, kind: type[SentencePieces] | type[LibraryPieces], given: tuple[Any, ...]) -> Tokenizer:
    """Make the tokenizer of another process again."""
    if issubclass(kind, LibraryPieces):
        return Tokenizer(model_file, {}, kind(*given))
    path, special, adds_bos, eos, shown = given
    return Tokenizer(model_file, special, SentencePieces(path, special, adds_bos=adds_bos, eos=eos, shown=shown))
