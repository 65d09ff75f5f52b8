"""Damaged tokenizers of the `tokenizers` library are named: file, line or entry, and what to do."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from helpers.tokenizer_kinds import KINDS
from megatron_v2pe.checkpoint.hf.side_files import check_side_files
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import CheckpointError, ConfigError

ROWS = 520


def edit(name, change):
    """Return what changes the JSON object of a file."""

    def run(folder):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return run


def text(name, change):
    """Return what changes the text of a file."""
    return lambda folder: (folder / name).write_text(
        change((folder / name).read_text(encoding="utf-8")), encoding="utf-8"
    )


def without_lines(content):
    return "".join(content.splitlines(keepends=True)[:-5])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"
CASES = {
    "a merge of an unknown token": (
        "qwen2",
        text("merges.txt", lambda s: s + "zz qq\n"),
        r"merges.txt:\d+: merges 'zz' and 'qq', but 'zz' is no token",
    ),
    "a merge to an unknown token": ("qwen2", text("merges.txt", lambda s: s + "! ~\n"), r"merges.txt:\d+: .* but '!~'"),
    "a merge of three": ("qwen2", text("merges.txt", lambda s: s + "a b c\n"), r"merges.txt:\d+: found 'a b c', exp"),
    "merges cut in a line": ("qwen2", text("merges.txt", lambda s: s[: len(s) // 2]), r"merges.txt(:\d+)?: "),
    "merges cut between lines": ("qwen2", text("merges.txt", without_lines), "merges.txt: no merge makes 5 tokens of"),
    "no merges": ("qwen2", text("merges.txt", lambda s: ""), "merges.txt: holds no merge"),
    "no file of merges": ("qwen2", lambda f: (f / "merges.txt").unlink(), "merges.txt: missing; vocab.json beside it"),
    "no vocabulary": ("qwen2", lambda f: (f / "vocab.json").unlink(), "vocab.json: missing; merges.txt beside it"),
    "an id twice": ("qwen2", edit("vocab.json", lambda c: c.update({"!": 5})), "vocab.json: id 5 is given to '!' and"),
    "a name twice": ("qwen2", text("vocab.json", lambda s: '{"!": 0, ' + s[1:]), "vocab.json: .*stands twice"),
    "an id as text": ("qwen2", edit("vocab.json", lambda c: c.update({"!": "5"})), "vocab.json: '!': found 5, expect"),
    "half a vocabulary": ("qwen2", text("vocab.json", lambda s: s[: len(s) // 2]), "vocab.json: not valid JSON"),
    "a list": ("qwen2", text("vocab.json", lambda s: "[1]"), "vocab.json: holds a list, expected an object"),
    "a pointer": ("qwen2", text("vocab.json", lambda s: POINTER), "vocab.json: a Git LFS pointer of 63 bytes"),
    "a pointer for merges": ("qwen2", text("merges.txt", lambda s: POINTER), "merges.txt: a Git LFS pointer of 63"),
    "an added token with two ids": (
        "qwen2",
        edit("added_tokens.json", lambda c: c.update({"<img>": 600})),
        r"added_tokens.json: token '<img>': found id 600, but .*tokenizer_config.json: added_tokens_decoder: 503",
    ),
    "an added token beyond the next id": (
        "qwen2",
        edit("added_tokens.json", lambda c: c.update({"<new>": 515})),
        "vocab.json: token '<new>' is stated to have id 515, but in this vocabulary it has 512",
    ),
    "another vocabulary": (
        "qwen2",
        edit("vocab.json", lambda c: c.update({"extra": 500})),
        "merges.txt: no merge makes 1 tokens of vocab.json, the first of which is 'extra'",
    ),
    "an unknown part": (
        "llama3",
        edit("tokenizer.json", lambda c: c.update(normalizer={"type": "Foo"})),
        "tokenizer.json: normalizer: unknown: 'Foo'; known are NFC, NFD",
    ),
    "an unknown part of a sequence": (
        "llama3",
        edit("tokenizer.json", lambda c: c["pre_tokenizer"]["pretokenizers"].append({"type": "Foo"})),
        r"tokenizer.json: pre_tokenizer\[2\]: unknown: 'Foo'; known are ByteLevel",
    ),
    "another kind": (
        "llama3",
        edit("tokenizer.json", lambda c: c["model"].update(type="WordPiece")),
        "tokenizer.json: a tokenizer of kind WordPiece; those of kind BPE are read",
    ),
    "random merges": (
        "llama3",
        edit("tokenizer.json", lambda c: c["model"].update(dropout=0.1)),
        "model: dropout: it would leave out merges at random; set it to null",
    ),
    "a merge of a file of all": (
        "llama3",
        edit("tokenizer.json", lambda c: c["model"]["merges"].append(["zz", "q"])),
        r"tokenizer.json: model: merges\[\d+\]: merges 'zz' and 'q', but 'zz' is no token",
    ),
    "a number for a merge": (
        "llama3",
        edit("tokenizer.json", lambda c: c["model"]["merges"].append(5)),
        r"model: merges\[\d+\]: found a whole number, expected two tokens",
    ),
    "a token twice": (
        "llama3",
        edit("tokenizer.json", lambda c: c["added_tokens"].append({**c["added_tokens"][0], "id": 3})),
        r"tokenizer.json: added_tokens\[14\]: token '<\|begin_of_text\|>': found id 3, but",
    ),
    "a token with another id": (
        "llama3",
        edit("tokenizer.json", lambda c: c["added_tokens"][3].update(id=3000)),
        r"tokenizer.json: token '<\|im_end\|>': found id 3000, but .* gives it 503",
    ),
    "a broken pattern": (
        "llama3",
        edit("tokenizer.json", lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(("})),
        "tokenizer.json: the library tokenizers cannot open it",
    ),
    "an unknown first token": (
        "llama3",
        edit("tokenizer.json", lambda c: c["post_processor"]["single"][0]["SpecialToken"].update(id="<bos>")),
        "post_processor: single: '<bos>' is no token of the vocabulary",
    ),
    "no model": ("llama3", edit("tokenizer.json", lambda c: c.pop("model")), "tokenizer.json: section 'model' is miss"),
    "half a file": ("llama3", text("tokenizer.json", lambda s: s[:-50]), "tokenizer.json: not valid JSON"),
    "a class that is no text": (
        "llama3",
        edit("tokenizer_config.json", lambda c: c.update(tokenizer_class=5)),
        "tokenizer_config.json: tokenizer_class: found 5, expected text",
    ),
    "a first token by word": (
        "llama3",
        edit("tokenizer_config.json", lambda c: c.update(add_bos_token="yes")),
        "tokenizer_config.json: add_bos_token: found the text 'yes', expected true or false",
    ),
    "a token that has another name": (
        "llama",
        edit("tokenizer_config.json", lambda c: c["added_tokens_decoder"].update({"0": {"content": "<pad>"}})),
        "tokenizer.model: token '<pad>': id 0 is taken by '<unk>'",
    ),
    "half a SentencePiece model": (
        "llama",
        lambda f: (f / "tokenizer.model").write_bytes((f / "tokenizer.model").read_bytes()[:300]),
        "tokenizer.model: not a SentencePiece model",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folders = {kind: tmp_path_factory.mktemp("kind") for kind in ("qwen2", "llama3", "llama")}
    for kind, folder in folders.items():
        KINDS[kind](folder)
    return folders


@pytest.mark.parametrize("case", CASES)
def test_damage_is_named(whole, tmp_path, case):
    """Where a model is opened and where one is converted: the same words, the class of error of the place."""
    kind, damage, message = CASES[case]
    folder = shutil.copytree(whole[kind], tmp_path / "hf")
    damage(folder)
    with pytest.raises(ConfigError, match=message):
        Tokenizer.of_model(folder, ROWS)
    with pytest.raises(CheckpointError):
        check_side_files(folder, ROWS)


@pytest.mark.parametrize("kind", ["qwen2", "llama3", "llama"])
def test_a_vocabulary_larger_than_the_models(whole, kind):
    count = len(Tokenizer.of_model(whole[kind], ROWS))
    check_side_files(whole[kind], count)
    file = {"qwen2": "vocab.json", "llama3": "tokenizer.json", "llama": "tokenizer.model"}[kind]
    for rows, message in (
        (count - 1, f"{count} tokens in the tokenizer, {count - 1} rows in the model; '</box>' has id {count - 1}"),
        (400, f"400 rows in the model; .*; {file} alone has 500 pieces, it belongs to another model"),
    ):
        with pytest.raises(ConfigError, match=message):
            Tokenizer.of_model(whole[kind], rows)
        with pytest.raises(CheckpointError, match=message):
            check_side_files(whole[kind], rows)


@pytest.mark.parametrize("kind", ["qwen2", "llama3"])
def test_any_damage_is_refused_or_opens(whole, tmp_path, kind):
    """Bytes changed or left out anywhere: an error of ours, or a tokenizer that encodes."""
    rng = random.Random(5)
    names = sorted(path.name for path in whole[kind].iterdir())
    refused = 0
    for number in range(60):
        folder = shutil.copytree(whole[kind], tmp_path / str(number))
        path = folder / rng.choice(names)
        content = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            del content[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(len(content))] = rng.choice(b'0"{}[],:\\\n\x00\xff ~a')
        path.write_bytes(content)
        try:
            Tokenizer.of_model(folder, None).encode("What is it? 一只橘猫 123\n")
        except ConfigError:
            refused += 1
    assert refused > 30
