"""New tokens in every kind of tokenizer: ids and texts of transformers' `add_tokens`, and files of bad tokens."""

from __future__ import annotations

import json
import pickle
import random

import pytest

from helpers.tokenizer_kinds import KINDS, texts, write_internlm2
from megatron_v2pe.data.new_tokens import read_new_tokens_for
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.grown_tokenizer import grown_tokenizer_files, read_new_tokens
from megatron_v2pe.foreign.sentence_piece_library import library_of_pieces
from megatron_v2pe.foreign.tokenizer_files import shown_tokens, special_tokens

ENTRIES = [
    "<loc_1>",
    "<loc_12>",
    "naïve_token",
    {"content": "[SEP*]", "special": True},
    {"content": "<box_start>", "mean_of": "a small box"},
    "图片标记",
]
NAMES = [entry if isinstance(entry, str) else entry["content"] for entry in ENTRIES]
ALL = {**KINDS, "internlm2": write_internlm2}
TEMPLATES = {"phi3": "phi3-chat"}


def listed(path, entries):
    path.write_text(json.dumps(entries))
    return path


def with_new_tokens(count):
    """Texts in which new tokens stand at any place, also side by side."""
    rng = random.Random(3)
    made = []
    for text in texts(count):
        at = rng.randrange(len(text) + 1)
        made.append(text[:at] + rng.choice(NAMES) + text[at:] + rng.choice([rng.choice(NAMES) * 2, ""]))
    return made


def grown(kind, folder):
    """Write a tokenizer, add the tokens to it in memory and to its files; return it, the tokens, and it before."""
    ALL[kind](folder)
    base = Tokenizer.from_folder(folder)
    template = TEMPLATES.get(kind, "internlm2-chat")
    tokens = read_new_tokens_for(listed(folder.with_suffix(".json"), ENTRIES), base, template)
    for name, content in grown_tokenizer_files(folder, tokens, ConfigError).items():
        (folder / name).write_text(content)
    return base.with_tokens([token.added for token in tokens]), tokens, base


@pytest.mark.parametrize("kind", ALL)
def test_memory_files_and_another_process_have_one_tokenizer(kind, tmp_path):
    ours, tokens, base = grown(kind, tmp_path / "tokenizer")
    again = Tokenizer.from_folder(tmp_path / "tokenizer")
    copy = pickle.loads(pickle.dumps(ours))
    assert again.fingerprint == ours.fingerprint == copy.fingerprint != base.fingerprint
    assert [ours.special[name] for name in NAMES] == [*range(len(base), len(base) + len(NAMES))]
    for text in with_new_tokens(80):
        ids = ours.encode(text)
        assert ids == again.encode(text) == copy.encode(text)
        assert ours.decode(ids) == again.decode(ids) == copy.decode(ids)
    assert ours.decode(ours.encode("a<loc_1>[SEP*]")) == "a<loc_1>", "a special token is left out of texts"
    assert tokens[0].pieces == tuple(base.encode("<loc_1>")) and tokens[4].pieces == tuple(base.encode("a small box"))
    assert read_new_tokens(tmp_path / "tokenizer", ConfigError) == tuple(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, tokens, _ = grown(kind, tmp_path / "grown")
    KINDS[kind](tmp_path / "base")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    for token in tokens:
        added = transformers.AddedToken(token.content, special=token.special, normalized=False)
        theirs.add_tokens([added], special_tokens=token.special)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "grown")
    cases = with_new_tokens(150)
    for other in (theirs, opened):
        assert len(other) == len(ours)
        assert [text for text in cases if [*ours.before, *ours.encode(text)] != other(text).input_ids] == []
        ids = [ours.encode(text) for text in cases]
        assert other.batch_decode(ids, skip_special_tokens=True) == [ours.decode(one) for one in ids]


def test_ids_of_a_sentence_piece_model_with_new_tokens_are_those_of_its_library_form(tmp_path):
    """InternLM2's class is code of the checkpoint; its `tokenizer.json`, which native exports have, stands in."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "tokenizer"
    ours, _, _ = grown("internlm2", folder)
    shown = shown_tokens(folder, ConfigError)
    assert shown == {*NAMES} - {"[SEP*]"}
    content = library_of_pieces(folder / "tokenizer.model", special_tokens(folder, ConfigError), ConfigError, shown)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in with_new_tokens(150):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids and ours.decode(ids) == theirs.decode(ids)


LINES = {
    "": "holds no token",
    "<a>\n\n<b>\n": r":2: an empty line, expected a token",
    "<a>\n <b>\n": r":2: token ' <b>' has white space at an end",
    "<a>\n<b>\n<a>\n": r":3: token '<a>' stands twice, first at .*:1",
    "<a>\n<img>\n": r":2: '<img>' is token \d+ of the checkpoint's tokenizer already, remove it",
    "<img>\n</img>\n": r":1: '<img>' is token \d+ .*, as all tokens of the file are.*leave model.add_tokens out",
    "<a>\nx<|im_end|>\n": r":2: token 'x<\|im_end\|>' holds <\|im_end\|>, which prompts of template 'internlm2-chat'",
    "<IMG_CONTEXT>s\n": r"holds <IMG_CONTEXT>",
    "<image>s\n": r"holds <image>",
    "</s>1\n": r"holds </s>",
    "assistant\n": r":1: token 'assistant' stands in '<\|im_start\|>assistant\\n', which template 'internlm2-chat' wri",
    "a" * 1001: "a token of 1001 characters, at most 1000",
    "a\0b": "is no text",
}
JSON = {
    '{"a": 1}': "found an object, expected a list of tokens",
    '["<a>", 3]': r"\[1\]: found a whole number, expected a token",
    '["<a>", ""]': r"\[1\]: an empty token",
    '[{"special": true}]': r"\[0\]: field 'content' is missing",
    '[{"content": "<a>", "specail": true}]': r"\[0\]: unknown field 'specail'",
    '[{"content": "<a>", "special": 1}]': r"\[0\]: special: found .*, expected",
    '["\\ud83d"]': "is no text: it has half a surrogate pair",
    '[{"content": "<a>", "mean_of": " "}]': "mean_of: expected a text with pieces",
    '[{"content": "<a>", "lstrip": true}]': "token '<a>' has lstrip, rstrip or single_word",
    '["<a>"': "not JSON|cut short|JSON",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_internlm2(folder)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [*(("t.txt", *pair) for pair in LINES.items()), *(("t.json", *pair) for pair in JSON.items())],
)
def test_bad_files_are_refused(base, tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_new_tokens_for(tmp_path / name, base, "internlm2-chat")
    assert str(tmp_path / name) in str(caught.value) or "lstrip" in content


def test_files_that_are_no_text_are_refused(base, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"<a>\n\xff\xfe\x01")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_new_tokens_for(tmp_path / "t.txt", base, "internlm2-chat")
    with pytest.raises(ConfigError, match="no such file; it lists new tokens"):
        read_new_tokens_for(tmp_path / "none.txt", base, "internlm2-chat")
    (tmp_path / "many.txt").write_text("".join(f"<{number}>\n" for number in range(100_001)))
    with pytest.raises(ConfigError, match="holds 100001 tokens, at most 100000"):
        read_new_tokens_for(tmp_path / "many.txt", base, "internlm2-chat")


def test_a_piece_of_the_vocabulary_is_no_new_token(tmp_path):
    """As for transformers' `add_tokens`, which passes it over."""
    KINDS["qwen2"](tmp_path / "tokenizer")
    base = Tokenizer.from_folder(tmp_path / "tokenizer")
    piece = next(name for name in ("the", "an", "er", "in") if len(base.encode(name)) == 1)
    with pytest.raises(ConfigError, match=f"'{piece}' is token {base.encode(piece)[0]} of the checkpoint's"):
        read_new_tokens_for(listed(tmp_path / "t.json", ["<a>", piece]), base, "internlm2-chat")
