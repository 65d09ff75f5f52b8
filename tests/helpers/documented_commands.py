"""Which commands do the pages of this project tell a reader to type? Their blocks, and what is said about running them.

A block of `sh` has an HTML comment in the line before it (or, in a list, two lines before): `<!-- runs -->` for one
that works as it stands in a folder with data and checkpoints, `<!-- not run: REASON -->` for one that takes too much.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNS = "runs"
_BLOCK = re.compile(r"(?:^ *<!-- (?P<mark>[^\n]*?) -->\n\n?)?^ *```sh\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_HERE_DOCUMENT = re.compile(r"<<'(\w+)'[^\n]*\n.*?^\1$", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"(tools|scripts|examples)/\S+\.(py|sh)")
_STARTERS = ("python", ".venv/bin/python", "sh", "bash", "torchrun")


@dataclass(frozen=True)
class Block:
    """A block of commands."""

    page: Path
    line: int
    text: str
    """Without the indentation of a list."""
    mark: str
    """`runs`, `not run: REASON`, or "" where nothing is said."""

    @property
    def runs(self) -> bool:
        """Whether a reader can type it as it stands."""
        return self.mark == RUNS

    @property
    def reason(self) -> str:
        """Why it is not run, "" where none is stated."""
        return self.mark.partition("not run: ")[2]


@dataclass(frozen=True)
class Command:
    """A program of the checkout with what is given to it."""

    variables: tuple[str, ...]
    """Names of environment variables set in front of it."""
    program: str
    """Path from the root of the checkout."""
    words: tuple[str, ...]


def pages(root: Path) -> list[Path]:
    """Return the pages of a checkout that show commands."""
    return [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *sorted(root.glob("docs/*.md")),
        *sorted(root.glob("examples/*/README.md")),
    ]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of commands of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        lines = match["text"].split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        body = "\n".join(line[indent:] for line in lines)
        found.append(Block(page, text.count("\n", 0, match.start("text")), body, match["mark"] or ""))
    return found


def spans(page: Path) -> list[str]:
    """Return the commands that stand in a page's sentences."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    inline = [" ".join(match[1].split()) for match in _SPAN.finditer(text)]
    return [span for span in inline if span.split(" ")[0] in _STARTERS or re.match(r"[A-Z_]+=", span)]


def commands(text: str) -> Iterator[Command]:
    """Yield the programs of this checkout that shell text starts; other commands are left out.

    Args:
        text: lines of sh, with what it may hold: comments, here-documents, lines that go on.
    """
    text = _HERE_DOCUMENT.sub("", text).replace("\\\n", " ")
    for line in re.split(r"\n|&&|;", text):
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        variables = [word.partition("=")[0] for word in words if re.match(r"[A-Z_0-9]+=", word)]
        place = next((at for at, word in enumerate(words) if _PROGRAM.fullmatch(word.removeprefix("./"))), None)
        before = words[:place] if place is not None else []
        if place is not None and any(word in _STARTERS for word in before):
            yield Command(tuple(variables), words[place], tuple(words[place + 1 :]))
