"""Which words a caption consists of: Penn Treebank tokens in lower case, punctuation dropped, without Java.

Source: the conventions of the Penn Treebank as Stanford's tokeniser (CoreNLP 3.4.1) applies them, which is what the
caption metrics of COCO call; written anew from its outputs. Contractions part (`do n't`, `it 's`, `can not`), hyphens,
slashes, dots and underscores inside words do not, brackets become `-lrb-`, `-rrb-`, ..., abbreviations and initials
keep their dot, signs stand alone. Then these tokens go: quotes, `.`, `?`, `!`, `,`, `:`, `;`, `-`, `--`, `...`
(but not `!!` or `-lrb-`, as in the reference).

Left out: smileys, and readings that depend on the line after. Over ordinary sentences it agrees with the jar
(`tests/unit/evaluate/scorers/test_caption_scores.py` says how often).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DROPPED = frozenset({"''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SIGNS = {"€": "$", "£": "#", "¢": "cents"}
_FRACTIONS = str.maketrans({"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"})
_PARTED = {
    "cannot": "can not",
    "gimme": "gim me",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "wanna": "wan na",
}
_ABBREVIATIONS = """
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn dak fla ga ind
kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo inc co cos corp pte ptys plc ltd bancorp dept
bhd assn univ intl sys invt elec natl mfg bros jr sr esq blvd rd mr mrs ms dr drs prof profs sen sens rep reps atty
attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt st ste ave pres lieut hon brig cmdr comdr pfc spc supt
supts det mt ft adj adv asst assoc ens insp mlle mme msgr sfc vs alex wm jos cie cf treas etc al est ct sq tel ext seq
bldg ph.d
""".split()
_CAPITALISED = "Del Ark Ore Mass Ill La Miss Wash Tex Pa".split()
_BEFORE_NUMBER = "no nos prop fig figs pp op ca".split()


def _any_of(words: Iterable[str]) -> str:
    """Return a pattern of words, longer ones first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_WORD = r"[^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)*"
_JOINT = r"(?:[-/_]|(?<=[A-Z])&(?=[A-Z]))"
_TOKEN = re.compile(
    "|".join(
        [
            # addresses and tags
            r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,!?;:)'\]]",
            r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
            r"</?[A-Za-z][^<>\n]*>",
            # apostrophes: 't is, 'em, 'n', 's, o'clock, y' all, n't
            r"['’][tT](?=is\b|was\b)",
            r"['’](?:n['’]|(?:em|cause|\d\ds|n)(?![^\W_]))",
            r"['’](?i:m|d|s|ll|re|ve)(?![^\W_])",
            r"(?:ma['’]am|o['’]clock|d['’]ye)(?![^\W_])",
            r"[yY]['’](?=all\b)",
            r"[nN]['’][tT](?![^\W_])",
            # acronyms, abbreviations, initials
            r"(?:[^\W\d_]\.)+[^\W\d_](?![^\W_])\.?(?:-[^\W_]+)*",
            rf"(?i:{_any_of(_ABBREVIATIONS)})\.(?![^\W\d_])",
            rf"(?:{_any_of(_CAPITALISED)})\.(?![^\W_])",
            rf"(?i:{_any_of(_BEFORE_NUMBER)})\.(?=\s?\d)",
            r"[^\W\d_]\.(?![^\W\d_])",
            # numbers: 1,000-foot; -3.5, 10:30, but not the digits of 3x5, 1/2 or 2-foot
            r"\d+(?:[.,]\d+)*(?:-[^\W\d_][^\W_]*)+",
            r"(?=[-+]?\d*(?:[.:,]\d|\d(?![^\W_]|[-/][^\W_])))[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
            # words: the part before n't; d'Angelo, km/h, well-known, R&D
            r"(?i:[^\W\d_]+?(?=n['’]t(?![^\W_])))",
            rf"(?:[dolDOL]['’](?=[^\W\d_]))?(?:{_WORD}|[^\W_]+)(?:{_JOINT}(?:{_WORD}|[^\W_]+))*_?",
            r"[#@][^\W\d_]\w*",
            # signs
            r"\.{3,}|…",
            r"-{2,}|[–—―]",
            r"[!?]+|#+|\*+|@+|_+",
            r"\S",
        ]
    )
)


def ptb_words(caption: str) -> list[str]:
    """Return the words of a caption, in order."""
    words: list[str] = []
    for match in _TOKEN.finditer(caption.replace("\n", " ").translate(_FRACTIONS)):
        words += _normal(match[0]).split()
    return [word for word in words if word not in _DROPPED]


def _normal(token: str) -> str:
    """Return a token as it is counted; nothing for dashes, dots and characters beyond the basic plane."""
    token = token.lower().replace("’", "'").replace("‘", "'")
    if token[0] in "…–—―“”„‐‑" or token.startswith(("--", "...")) or (len(token) == 1 and ord(token) > 0xFFFF):
        return ""
    return _BRACKETS.get(token) or _SIGNS.get(token) or _PARTED.get(token) or token
