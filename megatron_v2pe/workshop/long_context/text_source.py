"""Background text: the paragraphs of any text files, found once and read when they are wanted.

Paragraphs are parted by blank lines; in a file without any, every line is one. Longer ones than 2,000 bytes are cut at
a sentence or a word, so that a needle can be placed near any depth. Paragraphs that spell a special token or a
placeholder are left out and counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.workshop.long_context.pipeline import Encoding

_LARGEST = 1 << 33
"""Bytes of a text file, at most."""
_LONGEST = 2000
_SHORTEST_PART = 1000
Span = tuple[int, int]
"""First byte and the one after the last."""


class TextSource:
    """Paragraphs by number, those of one file in order, file after file."""

    def __init__(self, files: Sequence[Path], encoding: Encoding) -> None:
        """Find the paragraphs of files.

        Raises:
            ConfigError: a file is missing, or there is no paragraph in any of them.
            DataError: a file is not UTF-8; names the byte.
        """
        self.files = [str(file) for file in files]
        self.left_out = 0
        """Paragraphs that spell a special token or a placeholder."""
        self._places = array("q")  # file, first byte, byte after the last: three a paragraph
        for number, file in enumerate(files):
            content = _read(file)
            for start, end in _paragraphs(content):
                if encoding.spells_reserved(content[start:end].decode()):
                    self.left_out += 1
                else:
                    self._places.extend((number, start, end))
        if files and not len(self):
            raise ConfigError(
                f"{', '.join(self.files)}: no text to use ({self.left_out} paragraphs spell special tokens)"
            )

    def __len__(self) -> int:
        """Return the number of paragraphs."""
        return len(self._places) // 3

    def paragraph(self, number: int) -> str:
        """Return a paragraph as one line."""
        file, start, end = self._places[3 * number : 3 * number + 3]
        with open(self.files[file], "rb") as stream:
            stream.seek(start)
            return _one_line(stream.read(end - start))

    def from_paragraph(self, first: int) -> Iterator[tuple[int, str]]:
        """Yield number and text of all paragraphs once, from `first` on, beginning again after the last."""
        for offset in range(len(self)):
            number = (first + offset) % len(self)
            yield number, self.paragraph(number)

    def describe(self) -> str:
        """Return the files in few words, for errors."""
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more files"


def _read(file: Path) -> bytes:
    if not file.exists():
        raise ConfigError(f"{printable(file)}: text cannot be read: No such file or directory")
    content = read_bytes(file, ConfigError, _LARGEST)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(file)}: not UTF-8 text: byte {error.start}: {error.reason}") from error
    return content


def _paragraphs(content: bytes) -> Iterator[Span]:
    lines = list(_lines(content))
    inside = range(len(lines))
    by_blank_lines = any(_blank(content, lines[i]) for i in inside[1:-1])
    if by_blank_lines:
        for blank, group in groupby(lines, key=lambda line: _blank(content, line)):
            if not blank:
                spans = list(group)
                yield from _short_enough(content, (spans[0][0], spans[-1][1]))
    else:
        for line in lines:
            if not _blank(content, line):
                yield from _short_enough(content, line)


def _lines(content: bytes) -> Iterator[Span]:
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        yield start, end
        start = end + 1


def _blank(content: bytes, span: Span) -> bool:
    return not content[span[0] : span[1]].strip()


def _short_enough(content: bytes, span: Span) -> Iterator[Span]:
    """Cut a span after a sentence, else a word, else a character, wherever it is longer than the longest allowed."""
    start, end = span
    while end - start > _LONGEST:
        first, last = start + _SHORTEST_PART, start + _LONGEST
        cut = max(content.rfind(b". ", first, last), content.rfind(b".\n", first, last)) + 1
        cut = cut or content.rfind(b" ", first, last) + 1
        if not cut:
            cut = last
            while content[cut] & 0xC0 == 0x80:  # inside a character
                cut -= 1
        yield start, cut
        start = cut
    if not _blank(content, (start, end)):
        yield start, end


def _one_line(content: bytes) -> str:
    return " ".join(line.strip() for line in content.decode().splitlines()).strip()
