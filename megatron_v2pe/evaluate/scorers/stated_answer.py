"""Which part of an answer states it, and which parts it rejects: the truth about that for all corrected scorers.

An answer that explains itself names more than it answers. In this order:

- `stated_part`: what follows the last cue (`the answer is`, `Final answer:`, `答案是`), up to the end of its sentence
  and to its reasons (`because`, `not`, `rather than`); a cue that is negated, or supposes (`if ... would be`), is none.
  Without a cue: a yes or no at the beginning; a first paragraph with an explanation below; what follows `It is`; what
  stands before `, not ...`, or behind `not ... but`; the only words in bold print. A sentence without any of these
  states nothing apart: it is compared as a whole;
- `read_short`: an answer that is a true one as a whole is that; else what it states, an article before it aside where
  it is true without; else the whole;
- `without_rejected`: where a truth is looked for inside an answer, the stated part, or all that it does not reject;
- `split_at_corrections`: a self-correction (`wait, no`) begins a new part; the last part that says something counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, only_bold, trimmed

_COPULA = r"(?:is|was|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be)\b\s*:?"
CUE = re.compile(
    rf"\b(?:answers?|ans)\b(?:\s+to\s+(?:the|this|your)\s+question)?\s*(?:{_COPULA}|[:=→]|->|[-–—]\s|\n)\s*"
    r"|(?:答案|正解)\s*(?:应该|应当|应)?\s*(?:[是为选]\s*:?|:)\s*",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"(?:not|neither|never)\b|不是|并非|非", re.IGNORECASE)
_NEGATION_BEFORE = re.compile(r"(?:\bno|\bnot\s+(?:the|an|my)|不是|并非)\s*$", re.IGNORECASE)
_SUPPOSED = re.compile(r"\bif\b|\bhad\b|\bwere\b|如果|假如|\bat\s+first\b", re.IGNORECASE)
_WOULD = re.compile(r"\bwould\b|就是|则", re.IGNORECASE)
_FILLER = re.compile(
    r"^(?:(?:clearly|most\s+likely|likely|probably|definitely|obviously|therefore|thus|simply|indeed|approximately|"
    r"about|around|roughly|大约|约)\s+|[:\s]+)+",
    re.IGNORECASE,
)
_ABBREVIATION = re.compile(r"(?:\b(?:dr|mr|mrs|ms|st|jr|sr|prof|no|vs|mt|ft|co|inc|ltd|e\.g|i\.e)|\b[A-Za-z])$", re.I)
_SENTENCE_END = re.compile(r"\n|。|[.!?](?=\s|$)")
_REASON = re.compile(
    r"[,，;；]?\s+(?:because|since|as\s+(?:the|it|this|shown|indicated|described|stated|seen|can|you)|whereas|while|"
    r"although|though|rather\s+than|instead\s+of|unlike|as\s+opposed\s+to|but\s+not|and\s+not)\b"
    r"|\s*[,;(]\s*(?:not\b|which\b|and\s+not\b|因为|不是|而不是|而非|并非)|而不是|而非|因为",
    re.IGNORECASE,
)
_CONTRAST = re.compile(
    r"\s*[,;(]\s*(?:and\s+|but\s+)?not\s|\s+(?:rather\s+than|instead\s+of|as\s+opposed\s+to)\s|\s*,?\s*(?:而不是|而非)|\s*,\s*不是",
    re.IGNORECASE,
)
_EXPLANATION = re.compile(
    r"\s*(?:explanations?|reasons?|reasoning|rationale|because|note|why|analysis|justification|解释|理由|原因|分析|解析|说明)"
    r"\b|\s*(?:解释|理由|原因|分析|解析|说明)",
    re.IGNORECASE,
)
_YES_NO = re.compile(r"(yes|no)\b(?:\s*[,.;!—–]|\s+(?:it|there|he|she|they|i|this|that|the)\b(?!\s*$))", re.IGNORECASE)
_IT_IS = re.compile(
    r"(?:it|this|that|these|those|they|he|she)(?:'s|’s|'re|’re|\s+(?:is|are|was|were))\s+(?!not\b)", re.IGNORECASE
)
_NOT_BUT = re.compile(
    r"(?:(?:it|this|that|these|those|they)(?:'s|’s|\s+(?:is|are|was|were))\s+)?not\s[^.!?\n]*?,?\sbut\s+"
    r"(?!also\b|not\b)(?:(?:rather|instead)\s+)?(.+)",
    re.IGNORECASE | re.DOTALL,
)
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
_FEW_WORDS = 5
"""Most words of a first paragraph that is the answer where sentences follow it."""
_CORRECTION = re.compile(
    r"(?:(?<=[.!?…—–,\n])|(?<=\.\s)|^)\s*(?:but\s+|oh,?\s+|no,?\s+)?"
    r"(?:wait|hold\s+on|scratch\s+that|correction|on\s+second\s+thoughts?|let\s+me\s+(?:re-?)?(?:check|consider|think|"
    r"look)(?:\s+again)?)\b"
    r"|(?:(?<=[.!?…—–\n])|(?<=,\s)(?=sorry)|^)\s*(?:hmm+|actually|sorry|oops)\b"
    r"|(?:(?<=[。!?,.…])|^)\s*(?:不对|等等|等一下|更正)",
    re.IGNORECASE,
)
_NO = re.compile(r"(?<=[.!?…—–\n])\s*no(?=,|\.\.|\s+[-–—])", re.IGNORECASE)
_BUT = r"(?=[,.;!?\n。；]|\bbut\b|\bit\s+is\b|而是|$)"
_REJECTED = re.compile(
    rf"\b(?:rather\s+than|instead\s+of|unlike|as\s+opposed\s+to|other\s+than|except(?:\s+for)?)\b[^,.;!?\n。；]*"
    rf"|(?:\b(?:not|never|neither|nor|without|cannot)\b|n't\b|\bno\s+(?=\w)).*?{_BUT}"
    rf"|(?:不是|并非|而非|没有).*?{_BUT}",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[^,.;!?\n。；()]+")
_IDIOM = re.compile(r"\b(?:no|without(?:\s+a|\s+any)?)\s+doubts?\b|\bnot\s+only\b", re.IGNORECASE)
_NO_SPACES = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_WRONG = re.compile(
    r"\b(?:is|are|was|were|be|seems?|looks?)\s+(?:\w+ly\s+)?(?:wrong|incorrect|false)\b|不对|不正确|错误", re.I
)


def after_cues(said: str) -> list[tuple[int, str]]:
    """Return what follows each cue of a cleaned answer that is neither negated nor supposed, and where it begins."""
    found = []
    for match in CUE.finditer(said):
        before = said[max(0, match.start() - 120) : match.start()]
        sentence = re.split(r"[.!?\n。]\s", before)[-1]
        supposed = _SUPPOSED.search(sentence) and _WOULD.search(match[0] + said[match.end() : match.end() + 20])
        rest = said[match.end() :]
        if supposed or _NEGATED.match(rest) or _NEGATION_BEFORE.search(before) or not rest.strip():
            continue
        found.append((match.end(), rest))
    return found


def stated_part(said: str) -> str | None:
    """Return the phrase a cleaned answer states as its answer; None if no part of it does."""
    if found := after_cues(said):
        return trimmed(_FILLER.sub("", _without_reasons(first_sentence(found[-1][1]))))
    if match := _YES_NO.match(said):
        return match[1]
    first, _, rest = said.partition("\n")
    if rest and (_EXPLANATION.match(rest.strip()) or _is_explained(first, rest)):
        said = first
    elif rest:
        return None
    match = _IT_IS.match(said)
    if match and not said[len(first_sentence(said)) + 1 :].strip():
        return trimmed(_without_reasons(said[match.end() :]))
    if match := _NOT_BUT.match(said):
        return trimmed(_without_reasons(first_sentence(match[1])))
    cut = _CONTRAST.search(said)
    if cut and cut.start() > 0 and first_sentence(said[: cut.start()]) == said[: cut.start()]:
        return trimmed(said[: cut.start()])
    return trimmed(first) if rest else None


def read_short(text: str, truths: Sequence[str], normal: Callable[[str], str] = trimmed) -> str:
    """Return what a short answer is compared as, cleaned and trimmed.

    Args:
        text: of a model.
        truths: the true answers.
        normal: how texts are compared.
    """
    said = clean_answer(text)
    whole = trimmed(said)
    part = stated_part(said) or trimmed(only_bold(text) or whole)
    true = {normal(trimmed(truth)) for truth in truths}
    bare = _ARTICLE.sub("", part) if part != whole else part
    return next((reading for reading in (whole, part, bare) if normal(reading) in true), part)


def read_long(text: str) -> str:
    """Return a long answer, such as a caption, without what is said around it: its cue where it begins with one."""
    said = clean_answer(text, keep_loops=True)
    cue = CUE.search(said[:80])
    before = said[: cue.start()].strip().casefold() if cue else ""
    if cue and before in ("", "the", "my", "final", "the final", "the correct", "so the"):
        said = said[cue.end() :]
    return trimmed(said)


def without_rejected(text: str, truths: Sequence[str]) -> str:
    """Return the part of an answer in which a true one may be looked for: what it states, or does not reject.

    Args:
        text: of a model.
        truths: the true answers; where one is itself a negation (`No parking`), none in the answer is a rejection.
    """
    said = _IDIOM.sub(" ", clean_answer(text))
    found = after_cues(said)
    if found:
        said = _without_reasons(first_sentence(found[-1][1]))
    if any(_REJECTED.search(truth) for truth in truths):
        return said
    said = _REJECTED.sub(" ", said)
    return _CLAUSE.sub(lambda clause: " " if _WRONG.search(clause[0]) else clause[0], said).strip()


def stands_in(text: str, words: str) -> bool:
    """Whether words stand in a text as words; anywhere, where they are of a script that has no spaces."""
    text, words = " ".join(text.split()), " ".join(words.split())
    if _NO_SPACES.search(words):
        return words in text
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", _NO_SPACES.sub(" ", text)) is not None


def split_at_corrections(said: str, no_corrects: bool = False) -> list[str]:
    """Return a cleaned answer cut where it corrects itself.

    Args:
        said: the answer, cleaned.
        no_corrects: a `No,` behind a sentence is a correction, which it is not where it can be the answer.
    """
    marks = [*_CORRECTION.finditer(said), *(_NO.finditer(said) if no_corrects else ())]
    cuts = sorted((mark.start(), mark.end()) for mark in marks)
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(said)]
    return [said[start:end] for start, end in zip(starts, ends, strict=True)]


def first_sentence(text: str) -> str:
    """Return a text up to the end of its first sentence; a dot behind an initial or an abbreviation ends none."""
    for match in _SENTENCE_END.finditer(text):
        if match[0] != "." or not _ABBREVIATION.search(text[max(0, match.start() - 8) : match.start()]):
            if text[: match.start()].strip():
                return text[: match.start()]
    return text


def _is_explained(first: str, rest: str) -> bool:
    """Whether a first paragraph of few words is followed by a paragraph that is a sentence."""
    sentence = first_sentence(rest.strip())
    return (
        rest.startswith("\n")
        and len(first.split()) <= _FEW_WORDS
        and not first.rstrip().endswith(":")
        and len(sentence) < len(rest.strip())
        and len(sentence.split()) > 3
    )


def _without_reasons(sentence: str) -> str:
    reason = _REASON.search(sentence)
    return sentence[: reason.start()] if reason and reason.start() > 0 else sentence
