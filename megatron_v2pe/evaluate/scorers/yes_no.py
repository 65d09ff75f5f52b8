"""Whether an answer says yes or no: the reading of all corrected scorers that ask for one of the two.

Of a cleaned answer (`clean_answer`), in this order: what follows its cue (`stated_answer`); its last part that decides,
where it corrects itself. In a part, idioms (`no doubt`) and doubts (`not sure`, `no idea`, `cannot tell`, `maybe`) go,
each up to the end of its clause; then the first yes or no decides, else a negation (`There is nothing`), else a
statement (`There is a dog`, `True`). What is left open is neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, plain, trimmed
from megatron_v2pe.evaluate.scorers.stated_answer import after_cues, first_sentence, read_short, split_at_corrections

YES_OR_NO = frozenset(("yes", "no"))

_OPEN = re.compile(r"\byes\s*(?:and|or|/|,\s*and)\s*no\b|\bno\s*(?:and|or|/)\s*yes\b|是或否|是或不是", re.IGNORECASE)
_IDIOM = re.compile(
    r"\b(?:no|without(?:\s+a|\s+any)?|not\s+a)\s+(?:doubts?|questions?\s+about\s+it|problem)\b|毫无疑问"
)
_DOUBT = re.compile(
    r"(?:\bi(?:'m|\s+am)\s+)?\bnot\s+(?:\w+\s+)?(?:sure|certain|clear|enough|possible\s+to|able\s+to|confident|known)\b"
    r"|\bno\s+(?:\w+\s+)?(?:idea|clue|way\s+(?:to|of|for)|information|certainty|answer|comment)\b"
    r"|\b(?:can(?:not|'t|\s+not)|could(?:n't|\s+not)|do(?:n't|\s+not)|does(?:n't|\s+not)|will\s+not|won't)\s+(?:\w+ly\s+)?"
    r"(?:tell|say|determine|know|be\s+(?:\w+ly\s+)?(?:sure|certain|determined|answered|inferred|known|confirmed|verified)|"
    r"confirm|verify|answer|conclude|decide|judge|assess|provide|assist|help|comply|fulfill?|process|have\s+(?:enough|sufficient)|"
    r"(?:see|view|access|open)\s+(?:\w+\s+)?(?:image|picture|photo|video)s?)\b"
    r"|\b(?:unsure|unclear|uncertain|unknown|unable\s+to|hard\s+to|difficult\s+to|impossible\s+to|insufficient|maybe|"
    r"perhaps|possibly|it(?:'s|\s+is)\s+possible|not\s+necessarily|might|ambiguous)\b"
    r"|(?:无法|不能)(?:确定|判断|回答|看清|得知|确认|分辨|辨认)"
    r"|(?:不确定|不知道|不清楚|看不清|难以|也许|可能|说不准|不好说|没法)"
)
_ASKED = re.compile(
    r"^\s*(?:question\s*:\s*)?(?:is|are|was|were|do|does|did|can|could|has|have|will|would)\b[^.?!\n]*\?(?=\s*\S)"
    r"|\b(?:answer|reply|respond|say)\b[^.?!\n:]*\byes\s+or\s+no\b[^.?!\n:]*(?=[.?!\n:]\s*\S)"
)
"""The question and how it is to be answered, said again."""
_AT_FIRST = re.compile(
    r"\b(?:at\s+first(?:\s+(?:glance|sight|look))?|initially|(?:i\s+)?first\s+thought)\b[^.!?\n]*?\b(?:but|however)\b"
)
"""What an answer leaves behind."""
_UNTRUE = re.compile(
    r"\b(?:(?:not|never)\s+(?:true|correct|right|accurate|the\s+case)|(?:false|untrue|incorrect|wrong))\s+"
    r"(?:to\s+(?:say|claim|state)\s+)?that\b|\bisn't\s+(?:true|correct|right|the\s+case)\s+that\b"
)
"""Turns what follows it round."""
_NO_OF_SOMETHING = re.compile(r"no(?:\s+[\w'-]+){1,3}")
"""`No parking`: a text of its own, and not the answer no."""
_CLAUSES = re.compile(r"[,.;!?\n。]|\bbut\b|但")
_QUESTION = re.compile(r"(?:有没有|是否|是不是|是否有|有无)[^?,。]*\?|有没有|是否有?(?=\S)(?!定)")
_WORD = re.compile(r"[a-z']+")
_YES = frozenset(("yes", "yeah", "yep", "yup"))
_NO = frozenset(("no", "nope", "nah"))
_NEGATIONS = frozenset(
    "not never none nothing neither nor without absent lacks false negative incorrect nobody nowhere cannot".split()
)
_NO_CN = re.compile(
    r"不对|看不到|看不见|^\s*无|没有|没|不存在|不包含|不是|并非|并不|(?<![是能可])否(?!则)|^\s*不|(?<=[,.。;])\s*不|错误"
)
_YES_CN = re.compile(r"是|有|存在|包含|^对|正确|可以看到|能看到")
_STATEMENT = re.compile(
    r"\bthere(?:\s+(?:is|are|was|were)|'s)\b|\b(?:i|we|you)\s+(?:can\s+|do\s+)?(?:\w+ly\s+)?see\b|\bit\s+is\s+(?:there|present|visible)\b"
    r"|\b(?:image|picture|photo|photograph|scene|frame)\s+(?:\w+ly\s+|does\s+)?(?:shows?|contains?|has|depicts?|features?|includes?)\b"
    r"|^\W*(?:true|correct|right|certainly|absolutely|definitely|indeed|sure|affirmative|of\s+course|exactly|it\s+is|"
    r"it\s+does|they\s+are|they\s+do)\b"
    r"|\b(?:is|are)\s+(?:\w+ly\s+)?(?:present|visible|shown|true|correct|right|supported|entailed)\b"
)


def yes_or_no(text: str) -> str:
    """Return `yes` or `no`, empty where an answer says neither or both."""
    said = clean_answer(text).casefold().replace("\u2019", "'").replace("\u2018", "'")
    if found := after_cues(said):
        reading = _read(first_sentence(found[-1][1]))
        if reading:
            return reading
    for part in reversed(split_at_corrections(said)):
        if reading := _read(part):
            return reading
    return _read(said)


def read_short_or_yes_no(text: str, truths: Sequence[str], normal: Callable[[str], str] = trimmed) -> str:
    """Return what a short answer is compared as: yes or no where most true answers are, else as `read_short` has it.

    Args:
        text: of a model.
        truths: the true answers.
        normal: how texts are compared.
    """
    reading = read_short(text, truths, normal)
    asked = 2 * sum(plain(truth) in YES_OR_NO for truth in truths) > len(truths)
    if not asked or normal(reading) in map(normal, truths) or _NO_OF_SOMETHING.fullmatch(plain(clean_answer(text))):
        return reading
    return yes_or_no(text) or reading


def _read(text: str) -> str:
    text = _AT_FIRST.sub("", _ASKED.sub("", _QUESTION.sub("", text)))
    if untrue := _UNTRUE.search(text):
        if {*_words(text[: untrue.start()])} & (_YES | _NO):
            text = text[: untrue.start()]
        else:
            return {"yes": "no", "no": "yes"}.get(_read(text[untrue.end() :]), "")
    if _OPEN.search(text):
        return ""
    text = " , ".join(map(_without_doubt, _CLAUSES.split(_IDIOM.sub(" ", text))))
    words = _words(text)
    for word in words:
        if word in _YES:
            return "yes"
        if word in _NO:
            return "no"
    if any(word in _NEGATIONS or word.endswith("n't") for word in words) or _NO_CN.search(text):
        return "no"
    return "yes" if _STATEMENT.search(text) or _YES_CN.search(text) else ""


def _without_doubt(clause: str) -> str:
    """Return a clause, empty if it doubts; a yes or no before the doubt stays."""
    doubt = _DOUBT.search(clause)
    head = clause[: doubt.start()] if doubt else clause
    return head if doubt is None or {*_words(head)} & (_YES | _NO) else ""


def _words(text: str) -> list[str]:
    return [word.strip("'") for word in _WORD.findall(text)]
