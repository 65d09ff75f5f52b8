"""Text as it grows: stop strings across token borders, characters across tokens, nothing given out too early."""

from __future__ import annotations

import pytest

from helpers.tokenizer_kinds import KINDS, texts
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.generate.stop_strings import AnswerText
from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer


def spelled(pieces):
    """A tokenizer whose token i is `pieces[i]`, bytes."""
    return lambda ids: b"".join(pieces[i] for i in ids).decode("utf-8", "replace")


def fed(pieces, stops=()):
    text = AnswerText(spelled(pieces), stops)
    given = []
    for token in range(len(pieces)):
        given.append(text.push(token))
        if text.stopped:
            break
    given.append(text.finish())
    assert "".join(given) == text.text
    return given, text.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "given", "stopped"),
    [
        ([b"a", b"b"], (), ["a", "b", ""], False),
        ([b"one ST", b"OP two"], ("STOP",), ["one ", "", ""], True),
        ([b"S", b"T", b"O", b"P"], ("STOP",), ["", "", "", "", ""], True),
        ([b"S", b"T", b"x", b"y"], ("STOP",), ["", "", "STx", "y", ""], False),
        ([b"end S", b"T"], ("STOP",), ["end ", "", "ST"], False),  # held back, and given out at the end
        ([b"a\nb", b"\n", b"\nc"], ("\n\n", "c"), ["a\nb", "", "", ""], True),
        ([b"aab", b"aac"], ("aac", "b"), ["aa", ""], True),  # the first that comes, not the first that is named
        ([b"SS", b"TOP"], ("STOP",), ["S", "", ""], True),
    ],
)
def test_stop_strings(pieces, stops, given, stopped):
    assert fed(pieces, stops) == (given, stopped)


def test_a_character_comes_whole():
    euro, clef = "€".encode(), "𝄞".encode()
    assert fed([euro[:1], euro[1:2], euro[2:], b"!"])[0] == ["", "", "€", "!", ""]
    assert fed([clef[:1], clef[1:2], clef[2:3], clef[3:]])[0] == ["", "", "", "𝄞", ""]
    assert fed([b"x" + euro[:2], euro[2:] + b"y"])[0] == ["", "x€y", ""]


def test_bytes_that_are_no_character_are_not_held_for_ever():
    given, _ = fed([b"\xff", b"\xff", b"\xff", b"\xff", b"a"])
    assert "".join(given) == "\ufffd" * 4 + "a"
    assert given[3] == "\ufffd" * 4
    assert fed([b"a", b"\xe2"])[0] == ["a", "", "\ufffd"]


def test_pieces_join_to_the_whole_text(tmp_path):
    """With a SentencePiece tokenizer with byte fallback: a red square, an emoji, Chinese."""
    tokenizer = write_tokenizer(tmp_path)
    whole = "a red square 🟥 是 two  spaces\n你好"
    ids = tokenizer.encode(whole)
    text = AnswerText(tokenizer.decode, ("never",))
    pieces = [text.push(token) for token in ids] + [text.finish()]
    assert "".join(pieces) == tokenizer.decode(ids) == whole
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["qwen3", "llama3", "llama, legacy", "phi3"])
def test_texts_of_every_kind_grow_to_the_whole(tmp_path, kind):
    """Characters whose bytes are tokens of their own come whole, in every script, and so does what ends them."""
    KINDS[kind](tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    cases = [text for text in texts(400, seed=3) if "\0" not in text]
    for whole in cases:
        ids = tokenizer.encode(whole)
        text = AnswerText(tokenizer.decode, ("never",))
        pieces = [text.push(token) for token in ids] + [text.finish()]
        assert "".join(pieces) == tokenizer.decode(ids), whole
        assert not any("\ufffd" in piece for piece in pieces), whole
    stopping = AnswerText(tokenizer.decode, ("橘猫", "🐱"))
    for token in tokenizer.encode("图中有一只橘猫🐱躺在沙发上。"):
        stopping.push(token)
        if stopping.stopped:
            break
    assert stopping.stopped and stopping.text.strip() == "图中有一只"
