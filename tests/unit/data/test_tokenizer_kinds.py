"""Every kind of tokenizer gives the ids and texts of transformers, in several scripts; real files are not at hand."""

from __future__ import annotations

import pickle

import pytest

from helpers.tokenizer_kinds import KINDS, TEXTS, texts, write_internlm2
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign import library_rules

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Our tokenizer and transformers' of one folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    count = KINDS[request.param](folder)
    ours, theirs = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert len(ours) == len(theirs) == count and not ours.missing()
    return ours, theirs


def differing(ours, theirs, cases):
    expected = theirs(cases).input_ids
    said = theirs.batch_decode(expected, skip_special_tokens=True)
    return [
        text
        for text, ids, back in zip(cases, expected, said, strict=True)
        if [*ours.before, *ours.encode(text)] != ids or ours.decode(ids) != back
    ]


def test_ids_and_texts_are_those_of_transformers(pair):
    ours, theirs = pair
    assert differing(ours, theirs, texts(2000)) == []


def test_what_transformers_saves_is_opened(pair, tmp_path):
    """It writes `tokenizer.json` alone, without `added_tokens_decoder`, and leaves `legacy` of Llama's class out."""
    _, theirs = pair
    theirs.save_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert differing(Tokenizer.from_folder(tmp_path), saved, texts(300)) == []


def test_a_token_with_a_role_is_special(tmp_path):
    KINDS["qwen2"](tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"special": true', '"special": false'))
    ours, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert differing(ours, theirs, texts(300)) == []
    assert ours.decode(ours.encode("a<|im_end|>b<img>c")) == "abc"


def test_roles_are_those_of_transformers(pair):
    ours, theirs = pair
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.special.items() >= {name: theirs.convert_tokens_to_ids(name) for name in ours.special}.items()
    assert ours.img_context_id == theirs.convert_tokens_to_ids("<IMG_CONTEXT>")


def test_a_break_would_be_seen(tmp_path, monkeypatch):
    """Digits in threes, where Qwen2 takes them one by one; no NFC; blanks of Llama's before every part."""
    KINDS["qwen2"](tmp_path / "qwen")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "qwen")
    rules = library_rules.QWEN
    for name, part in (("pre_tokenizer", library_rules.BYTE_LEVEL | {"use_regex": True}), ("normalizer", None)):
        monkeypatch.setattr(library_rules, "QWEN", rules | {name: part})
        assert differing(Tokenizer.from_folder(tmp_path / "qwen"), theirs, texts(600))
    KINDS["llama"](tmp_path / "llama")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    path = tmp_path / "llama" / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"legacy": false', '"legacy": true'))
    assert differing(Tokenizer.from_folder(tmp_path / "llama"), theirs, texts(600))


def test_the_same_tokenizer_from_other_files(tmp_path):
    """Qwen2's two files and its `tokenizer.json` give one fingerprint, and so does another process's copy."""
    prints = {}
    for name in ("qwen2", "qwen2, tokenizer.json", "llama3", "llama", "llama, legacy"):
        KINDS[name](tmp_path / name)
        ours = Tokenizer.from_folder(tmp_path / name)
        copy = pickle.loads(pickle.dumps(ours))
        assert copy.fingerprint == ours.fingerprint and copy.encode(TEXTS[0]) == ours.encode(TEXTS[0])
        prints[name] = ours.fingerprint
    assert prints["qwen2"] == prints["qwen2, tokenizer.json"] and len(set(prints.values())) == 4


def test_files_come_out_the_same_in_every_run(tmp_path):
    for name in ("qwen3, all files", "llama3"):
        for run in ("first", "second"):
            KINDS[name](tmp_path / run)
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_half_a_surrogate_pair(pair):
    with pytest.raises(DataError, match="text cannot be tokenised"):
        pair[0].encode("yes \ud83d no")


def test_a_begin_token_as_the_files_say(tmp_path):
    """InternLM2's class puts `<s>` before a text unless its settings say otherwise."""
    write_internlm2(tmp_path)
    assert Tokenizer.from_folder(tmp_path).before == (1,)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"add_bos_token": false,', 1))
    other = Tokenizer.from_folder(tmp_path)
    assert other.before == () and pickle.loads(pickle.dumps(other)).before == ()


def test_rules_that_a_kind_does_not_know_are_refused(tmp_path):
    """InternLM2's class gives text to SentencePiece as it is: a token that swallows blanks would give other ids."""
    write_internlm2(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"rstrip": false', '"rstrip": true', 4))
    with pytest.raises(ConfigError, match="token '.*' has lstrip, rstrip or single_word, which is read for"):
        Tokenizer.from_folder(tmp_path)
