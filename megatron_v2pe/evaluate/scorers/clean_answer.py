"""What a model says in the end: an answer without thoughts, tags, boxes, JSON, markup and marks around it.

Every corrected scorer reads answers through this file, so that what is wrapped around an answer counts in none of them:

- thoughts (`<think>...</think>`) go; a thought that never ends leaves what stands before it, which is often nothing;
- what stands in an answer's own place is the answer: `<answer>B</answer>`, `\\boxed{B}`, `{"answer": "B"}`;
- a turn ends where its mark (`<|im_end|>`, `</s>`) stands; bold print, code marks and headings go;
- a model that does not end (`A, A, A, ...`) says no more by it: of a few characters in a row `_LOOPS` are read, of a
  very long answer its two ends, so that no answer takes long;
- `trimmed`: full-width signs become plain ones, spaces single; a bullet, quotes around the whole, marks at its end go.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

_END_OF_TURN = re.compile(r"<\|(?:im_end|endoftext|eot_id|end|end_of_text)\|>|</s>|<eos>|\[UNUSED_TOKEN_14\d\]")
_BEGINNING = re.compile(r"^(?:\s|<s>|<\|im_start\|>(?:assistant)?)+")
_THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"
_THOUGHT_OPENS = re.compile(rf"<{_THOUGHT}>|<\|begin_of_thought\|>|◁think▷", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"</{_THOUGHT}>|<\|end_of_thought\|>|◁/think▷", re.IGNORECASE)
_PLACE_OPENS = re.compile(
    r"<(?:answer|final_answer|final|conclusion|output)>|<\|begin_of_(?:box|solution)\|>", re.IGNORECASE
)
_PLACE_ENDS = re.compile(
    r"</(?:answer|final_answer|final|conclusion|output)>|<\|end_of_(?:box|solution)\|>", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|bf)\s*\{([^{}]*)\}")
_FENCE = re.compile(r"```[ \t]*(?:[A-Za-z]+(?=\s))?|```")
_FIELD = re.compile(
    r"""["'](?:final[_ ]?answer|correct[_ ]?answer|answer|choice|option|答案)["']\s*:\s*"""
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|-?[\d.,]*\d)""",
    re.IGNORECASE,
)
_NAMES = ("answer", "finalanswer", "correctanswer", "choice", "option", "答案")
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE)
_UNDERLINED = re.compile(r"(?<!\w)__(?=\S)|(?<=\S)__(?!\w)")
_SLANTED = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]{1,300})(?<=\S)\*(?![\w*])")
_BULLET = re.compile(r"^(?:[-*•‣·–]|#{1,6})\s+")
_BOLD = re.compile(r"\*\*(?=\S)([^*\n]{1,100})(?<=\S)\*\*")
_LAST_MARKS = " .!?,;:。、…·"
_PAIRS = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "『": "』", "«": "»", "`": "`", "$": "$", "*": "*"}
_DEEPEST = 3
_LOOPS = 100
"""So often the same few characters are read in a row."""
_LOOP = re.compile(rf"(.{{1,24}}?)\1{{{_LOOPS},}}", re.DOTALL)
_LONGEST = 16_000
"""Characters that are read of an answer without its thoughts: half at its beginning, half at its end."""
_PLAIN_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0xFF61: "。"}


def plain_width(text: str) -> str:
    """Return a text with full-width signs as plain ones; other signs, such as `²` and `½`, stay."""
    return text.translate(_PLAIN_WIDTH)


def clean_answer(text: str, keep_loops: bool = False) -> str:
    """Return what an answer says, its lines kept.

    Args:
        text: of a model.
        keep_loops: read all of what it says over and over, as where sentences are compared word by word.
    """
    text = _BEGINNING.sub("", plain_width(text))
    if end := _END_OF_TURN.search(text):
        text = text[: end.start()]
    text = _after_thoughts(text)
    text = _within_length(text if keep_loops else _without_loops(text))
    for _ in range(_DEEPEST):
        inner = _in_its_place(text)
        if inner is None:
            break
        text = inner
    return _without_print(text)


def trimmed(text: str) -> str:
    """Return a text with single spaces, without bullet, outer quotes and marks at its end; marks alone stay."""
    text = whole = " ".join(plain_width(text).split())
    before = None
    while text and text != before:
        before = text
        text = _BULLET.sub("", text).rstrip(_LAST_MARKS).lstrip()
        if len(text) > 1 and _PAIRS.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
            text = text[1:-1].strip()
    return text or whole


def plain(text: str) -> str:
    """Return a text as two short texts are compared: trimmed, in lower case."""
    return trimmed(text).lower()


def only_bold(text: str) -> str | None:
    """Return the words in bold print of an answer of one paragraph that has no others, as in `It is a **dog**.`"""
    found = _BOLD.findall(_after_thoughts(text))
    if len(found) != 1 or "\n\n" in text.strip() or found[0].rstrip().endswith(":"):
        return None
    return found[0]


def json_value(text: str) -> Any:
    """Return the value a text is as JSON or as Python writes it; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _without_loops(text: str) -> str:
    return _LOOP.sub(lambda loop: loop[1] * _LOOPS, text) if len(text) > _LOOPS else text


def _within_length(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}\n{text[-_LONGEST // 2 :]}"


def _after_thoughts(text: str) -> str:
    opens = _THOUGHT_OPENS.search(text)
    before = text[: opens.start()] if opens else ""
    ends = list(_THOUGHT_ENDS.finditer(text))
    if ends:
        after = text[ends[-1].end() :]
        return after if after.strip() else before
    return before if opens else text


def _in_its_place(text: str) -> str | None:
    """Return what stands in an answer's own place; None if there is none."""
    opens = list(_PLACE_OPENS.finditer(text))
    if opens:
        inner = text[opens[-1].end() :]
        end = _PLACE_ENDS.search(inner)
        return inner[: end.start()] if end else inner
    boxes = list(_BOX.finditer(text))
    if boxes:
        return _LATEX_TEXT.sub(r"\1", _braced(text, boxes[-1].end()))
    if "{" in text:
        return _field(text)
    return None


def _braced(text: str, start: int) -> str:
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]


def _field(text: str) -> str | None:
    """Return the answer's field of an object that is the whole text, or that stands in it."""
    bare = _FENCE.sub("", text).strip()
    value = json_value(bare) if bare.startswith("{") and bare.endswith("}") else None
    if isinstance(value, Mapping):
        return _named(value)
    found = list(_FIELD.finditer(text))
    if not found:
        return None
    value = found[-1][1]
    return value[1:-1] if value[0] in "\"'" else value


def _named(content: Mapping[Any, Any]) -> str | None:
    fields = {str(name).replace("_", "").replace(" ", "").casefold(): value for name, value in content.items()}
    for name in _NAMES:
        value = fields.get(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, (str, int, float)):
            return str(value)
    return None


def _without_print(text: str) -> str:
    text = _HEADING.sub("", _FENCE.sub("", text).replace("`", "")).strip()
    if text.count("**") > 1:
        text = text.replace("**", "")
    text = _SLANTED.sub(r"\1", _UNDERLINED.sub("", text))
    for opening, closing in (("\\[", "\\]"), ("\\(", "\\)"), ("$$", "$$")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)]
    return _LATEX_TEXT.sub(r"\1", text).strip()
