"""The turns of a conversation as people write them down: under either pair of names, perhaps a system turn first.

Understood: a list under `conversations`, `conversation` or `messages`; turns with `from` and `value` or with `role` and
`content`; the roles `human` or `user`, `gpt` or `assistant`, and `system`, in any capitals; `system` as a field of the
line. Everything else is refused for what it is. Read for annotations and for the questions of `generate.py --input`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_v2pe.data.conversation import SYSTEM
from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.media_fields import refuse_hidden_media
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import is_unicode, kind_of

LISTS = ("conversations", "conversation", "messages")
"""Fields that hold the turns."""
TURN_FIELDS = (*LISTS, SYSTEM)
"""Fields of a line that are read here."""
LONGEST_WORD = 1 << 20
"""The most characters in a row without a blank. A word of a million characters is tokenised in about a second; one that
is fifty times as long takes more than a minute."""
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", SYSTEM: SYSTEM}
_PAIRS = (("from", "value"), ("role", "content"))
_SWITCHES = ("loss", "train", "weight", "loss_scale", "loss_weight", "learn", "trainable")
"""Fields of a turn by which other programs exclude an answer from what is learned."""
_MARKS_OF_OTHERS = re.compile(
    r"<\|(?:image|video|vision|audio|media)(?:_?(?:pad|start|end|bos|eos|placeholder|\d+))?\|>|<ImageHere>"
    r"|<image[-_](?:placeholder|pad|soft_token)>|<start_of_image>"
)
"""Marks by which other programs say where an image or a video stands."""
Turn = tuple[str, str]


def turns_of(row: Mapping[str, Any], error: Kind, where: str = "") -> tuple[Turn, ...] | None:
    """Return the turns of a line, (role, text) with roles `system`, `human` and `gpt`; None where it has none.

    A leading answer is dropped, as the published loader does (not behind a system turn, which that does not know), and
    so is a system turn without text. Whether turns alternate
    is looked at by the template (`Template.render`).

    Args:
        row: the object of a line.
        error: class of the error to raise.
        where: put before a message, `file:line: ` for example.

    Raises:
        V2PEError: of class `error`: a turn is none, its role is none of those known, an answer is empty, there is a
            system turn elsewhere than first, or a question marks an image as another program does; names the turn.
    """
    named = [name for name in LISTS if row.get(name) not in (None, [])]
    if not named:
        return None
    name, content = named[0], row[named[0]]
    for other in named[1:]:
        if row[other] != content:
            raise error(f"{where}{name} and {other} hold different turns; leave one of the fields out")
    if not isinstance(content, list):
        raise error(f"{where}{name}: found {kind_of(content)}, expected a list of turns")
    turns, usual = list[Turn](), True
    for number, turn in enumerate(content, 1):
        if (read := _plain(turn)) is None:
            read, usual = _turn(turn, number, f"{where}{name}: turn {number}", error), False
        turns.append(read)
    system = list[Turn]()
    if not usual or SYSTEM in row:
        system, turns = _system_of(row, name, turns, error, where)
    _refuse_marks(turns, error, f"{where}{name}")
    if turns and turns[0][0] == "gpt":
        if system:
            raise error(f"{where}{name}: behind the system turn comes an answer, expected a question")
        turns = turns[1:]
    if not turns:
        raise error(f"{where}field {name!r} holds no question")
    return (*system, *turns)


def _refuse_marks(turns: list[Turn], error: Kind, where: str) -> None:
    """Refuse a question that marks its image as another program does, and not by a placeholder of ours."""
    found = None
    for role, text in turns:
        if "<image>" in text or "<video>" in text:
            return
        if found is None and role == "human" and "<" in text:
            found = _MARKS_OF_OTHERS.search(text)
    if found:
        raise error(
            f"{where}: a question has {found.group()}, by which another program marks an image or a video: write "
            "<image> or <video> in its place, and give the path in the field 'image' or 'video'"
        )


def _plain(turn: Any) -> Turn | None:
    """Read a turn as nearly all are, of which nothing has to be looked at twice; None of another."""
    if type(turn) is dict and len(turn) == 2:
        role, text = turn.get("from"), turn.get("value")
        if (role == "human" or role == "gpt") and type(text) is str and text.isascii():
            if len(text) <= LONGEST_WORD and (text and not text[0].isspace() or role == "human"):
                return role, text
    return None


def _turn(turn: Any, number: int, where: str, error: Kind) -> Turn:
    if not isinstance(turn, dict):
        raise error(f"{where}: found {kind_of(turn)}, expected an object")
    speaker, words = _PAIRS[1] if "from" not in turn and "role" in turn else _PAIRS[0]
    if words not in turn and (other := "content" if words == "value" else "value") in turn:
        words = other
    role, text = turn.get(speaker), turn.get(words)
    if not isinstance(role, str) or not isinstance(text, str):
        name, found = (words, text) if isinstance(role, str) else (speaker, role)
        state = "is missing" if name not in turn else f"found {kind_of(found)}, expected text"
        if name == words and isinstance(found, list):
            state += "; write the parts as one text with <image> where an image stands, its path in the field 'image'"
        raise error(f"{where}: {name!r}: {state}")
    if (known := _ROLES.get(role.lower())) is None:
        raise error(
            f"{where} is from {printable(role)[:40]!r}; turns are from 'human' ('user'), 'gpt' ('assistant') and, the "
            "first one, 'system'"
        )
    if not is_unicode(text):
        raise error(f"{where} holds half a surrogate pair, which is no text")
    if known == "gpt" and number > 1 and not text.strip():
        raise error(f"{where} is an empty answer: nothing can be learned of it; remove the turn")
    if len(text) > LONGEST_WORD and (longest := max(map(len, text.split()), default=0)) > LONGEST_WORD:
        raise error(f"{where} has {longest} characters without a blank, at most {LONGEST_WORD} are read")
    if len(turn) > 2:
        others = {name: value for name, value in turn.items() if name not in (speaker, words)}
        refuse_hidden_media(others, error, f"{where}: ")
        if known == "gpt" and (off := [name for name in _SWITCHES if others.get(name) in (False, 0)]):
            raise error(
                f"{where}: {off[0]!r} says not to learn it, but every answer is learned here; leave the field out"
            )
    return known, text


def _system_of(
    row: Mapping[str, Any], name: str, turns: list[Turn], error: Kind, where: str
) -> tuple[list[Turn], list[Turn]]:
    """Part the system turn, if there is one that says something, from the others."""
    for number, (role, _) in enumerate(turns[1:], 2):
        if role == SYSTEM:
            raise error(f"{where}{name}: turn {number} is a system turn; there can be one, as the first turn")
    first, rest = (turns[:1], turns[1:]) if turns and turns[0][0] == SYSTEM else ([], turns)
    said = row.get(SYSTEM)
    if said is not None and not isinstance(said, str):
        raise error(f"{where}{SYSTEM}: found {kind_of(said)}, expected text")
    if said and not is_unicode(said):
        raise error(f"{where}{SYSTEM}: holds half a surrogate pair, which is no text")
    texts = list(dict.fromkeys(text for text in (*(text for _, text in first), said or "") if text.strip()))
    if len(texts) > 1:
        raise error(f"{where}the field {SYSTEM!r} and the system turn of {name!r} differ; leave one out")
    return [(SYSTEM, text) for text in texts], rest
