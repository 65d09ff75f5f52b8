"""A tokenizer with a piece U+0000, as InternVL2's has one: loaded without a word, and nothing else is hidden."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from helpers.shared import shared_path
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.tokenizer_files import load_pieces
from megatron_v2pe.workshop.synthetic.tokenizer import train_tokenizer

WARNING = "null character"


@pytest.fixture(scope="module", params=["made up", "real"])
def model_file(request, tmp_path_factory):
    """A model whose piece 300 is the null character, and InternVL2's own."""
    if request.param == "real":
        return shared_path("golden/tokenizer") / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(train_tokenizer(["a red square is left of the blue circle"] * 20, 320))
    model.pieces[300].piece = "\0"
    path = tmp_path_factory.mktemp("null_piece") / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(autouse=True)
def every_message():
    """Training a small tokenizer, here or in an earlier test, leaves warnings out of SentencePiece's log."""
    sentencepiece.SetMinLogLevel(0)


def load_bare(path) -> None:
    sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(path.read_bytes())


def test_loaded_without_a_word(model_file, capfd):
    pieces = load_pieces(model_file, ConfigError)
    assert pieces.get_piece_size() > 300
    assert capfd.readouterr() == ("", "")


def test_nothing_but_this_loading_is_silenced(model_file, capfd):
    load_bare(model_file)
    said = capfd.readouterr().err.count(WARNING)
    load_pieces(model_file, ConfigError)
    load_bare(model_file)
    assert capfd.readouterr().err.count(WARNING) == said


def test_silent_in_a_fresh_process(model_file):
    """The first message of a process brings a line more: that loggers are not set up."""
    code = f"from megatron_v2pe.data.tokenizer import Tokenizer; print(len(Tokenizer.from_folder({str(model_file)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 300 and done.stderr == ""


def test_the_null_character_keeps_its_id(model_file):
    tokenizer = Tokenizer(model_file, {})
    ids = tokenizer.encode("red\0blue")
    assert tokenizer.decode(ids) == "red\0blue" and ids.count(tokenizer.encode("\0")[0]) == 1


def test_a_damaged_model_with_such_a_piece_is_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n\x05\n\x01\x00zz")
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        load_pieces(path, ConfigError)
