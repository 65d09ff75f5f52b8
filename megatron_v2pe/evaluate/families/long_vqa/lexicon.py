"""Which English words there are, and what their singular is: the word lists answers of Long-VQA are rectified with.

Source: the reference asks NLTK for the corpus `words` (Webster's Second International) and for the lemma of a noun
(WordNet 3.0's morphology), both of which are downloads. Here the first list comes with the package `english-words`
(where 235,970 words stand, NLTK has 235,886), and the nouns of WordNet 3.0 and their irregular forms lie in `tables/`
(licence beside them), without the entries of several words, which no single word can match.

WordNet's rule: an irregular form has its lemmas in a list; otherwise one ending is replaced. Of the word itself and
what comes out, those that are nouns count, the shortest of them first; if none is, the word stays as it is.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

from megatron_v2pe.errors import DataError, how_to_install

_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


@cache
def english_words() -> frozenset[str]:
    """Return the words of Webster's Second International.

    Raises:
        DataError: the package that holds them is not installed.
    """
    try:
        from english_words import get_english_words_set
    except ImportError as error:
        raise DataError(f"Long-VQA needs the package english-words: {how_to_install('eval')}") from error
    return frozenset(get_english_words_set(["web2"]))


@cache
def nouns() -> frozenset[str]:
    """Return WordNet's nouns of one word."""
    return frozenset(_lines("wordnet_nouns.txt.gz"))


@cache
def irregular_nouns() -> dict[str, list[str]]:
    """Return irregular forms and their lemmas."""
    return {form: lemmas for form, *lemmas in map(str.split, _lines("wordnet_noun_exceptions.txt.gz"))}


def _lines(name: str) -> list[str]:
    packed = (files("megatron_v2pe.evaluate.families.long_vqa") / "tables" / name).read_bytes()
    return gzip.decompress(packed).decode().splitlines()


def singular(word: str) -> str:
    """Return the lemma of a noun in lower case."""
    lemmas = irregular_nouns().get(word)
    if lemmas is None:
        lemmas = [word.removesuffix(ending) + new for ending, new in _ENDINGS if word.endswith(ending)]
    known = [lemma for lemma in [word, *lemmas] if lemma in nouns()]
    return min(known, key=len) if known else word


def without_ing(word: str) -> str:
    """Return the verb of a word in `ing`, in lower case; the word as it is if there is none.

    Tried in order: without the ending, without its doubled consonant, with an e.
    """
    root = word[:-3].lower()
    if not word.endswith("ing") or len(root) <= 1:
        return word
    candidates = [root, root[:-1] if root[-1] == root[-2] else root, root + "e"]
    return next((candidate for candidate in candidates if candidate in english_words()), word)
