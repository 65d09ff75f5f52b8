"""Encoding word by word gives SentencePiece's own ids, whatever the text."""

from __future__ import annotations

import io
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.shared import shared_path
from megatron_v2pe.data.word_pieces import WordPieces

PARTS = [
    "a red square ",
    "\n",
    "\t",
    " ",
    "  ",
    "\u2581",
    "blue,circle",
    "\n \n",
    "\t  ",
    " \u2581 ",
    "\u00e9",
    "\u5716",
    "\r\n",
]
PARTS += [
    "\u5716\u7247 \u4e2d",
    "123 456",
    "...",
    " ,",
    "x\u3000y",
    "\u200b ",
    "e\u0301 ",
    "if x:\n    return\n\n\t\ty",
]


def processor(**changes):
    model = io.BytesIO()
    text = "a red square is left of the blue circle\n    if x:\n\t  y = 12\n\n  z  .  \u5716\u7247 \u4e2d "
    settings_ = dict(normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 30),
        model_writer=model,
        **{**settings_, "vocab_size": 380, "model_type": "bpe", "byte_fallback": True, **changes},
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module", params=["split", "across", "real"])
def sp(request):
    """A model whose pieces stop at spaces, one whose pieces run across them, and InternVL2's."""
    if request.param == "real":
        path = shared_path("golden/tokenizer") / "tokenizer.model"
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    return processor(split_by_whitespace=request.param == "split")


def test_ids_are_sentencepieces_own(sp):
    words = WordPieces(sp)
    assert words._words is not None
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices(PARTS, k=draw.randint(1, 30)))
        assert words.encode(text) == sp.encode(text), repr(text)
        assert "".join(words._words.findall(text)) == text


@given(st.text(alphabet=st.sampled_from(" \u2581\n\tab12.,\u5716\u00e9\U0001f600"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text(text):
    assert SMALL.encode(text) == SMALL_SP.encode(text)


SMALL_SP = processor(split_by_whitespace=False)
SMALL = WordPieces(SMALL_SP)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "unigram", "vocab_size": 330},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
    ],
)
def test_models_that_change_text_are_left_to_sentencepiece(changes):
    sp = processor(**changes)
    words = WordPieces(sp)
    assert words._words is None
    assert words.encode(" a  red\tsquare ") == sp.encode(" a  red\tsquare ")


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("megatron_v2pe.data.word_pieces._MOST_WORDS", 10)
    words = WordPieces(SMALL_SP)
    text = " ".join(f"word{number}" for number in range(300)) + " " + "x" * 80
    assert words.encode(text) == SMALL_SP.encode(text)
    assert len(words._known) <= 10 and not any(len(word) > 64 for word in words._known)
