"""Paragraphs of text files."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.workshop.long_context.text_source import TextSource


@pytest.fixture
def source(tmp_path, world):
    def read(*contents):
        files = [tmp_path / f"{number}.md" for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return TextSource(files, world.encoding)

    return read


def paragraphs(source):
    return [source.paragraph(number) for number in range(len(source))]


def test_blank_lines_part_paragraphs(source):
    assert paragraphs(source("one\ntwo \n\n  \nthree\n")) == ["one two", "three"]


def test_without_blank_lines_every_line_is_one(source):
    assert paragraphs(source("one\ntwo\n", "\nthree")) == ["one", "two", "three"]


def test_crlf(source):
    assert paragraphs(source("one\r\ntwo\r\n\r\nthree\r\n")) == ["one two", "three"]


def test_long_paragraphs_are_cut_after_sentences_words_and_characters(source):
    sentences = "All is well. " * 500
    cut = paragraphs(source(sentences))
    assert len(cut) > 3 and all(text.endswith("well.") for text in cut)
    assert " ".join(cut) == sentences.strip()
    assert "".join(paragraphs(source("中" * 3000))) == "中" * 3000
    assert " ".join(paragraphs(source("word " * 1000))) == ("word " * 1000).strip()


def test_paragraphs_that_spell_tokens_are_left_out_and_counted(source):
    text = source("one\n\nan <image> here\n\nthe end: <|im_end|>\n\ntwo")
    assert paragraphs(text) == ["one", "two"] and text.left_out == 2


def test_paragraphs_go_round(source):
    assert [number for number, _ in source("a\nb\nc").from_paragraph(2)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"fine\n\xff\xfe", DataError, r"0.md: not UTF-8 text: byte 5"),
        ("\n \n", ConfigError, r"0.md: no text to use \(0 paragraphs"),
        ("<image>", ConfigError, r"0.md: no text to use \(1 paragraphs"),
    ],
)
def test_text_that_cannot_be_used(source, content, error, message):
    with pytest.raises(error, match=message):
        source(content)


def test_a_missing_file(world, tmp_path):
    with pytest.raises(ConfigError, match=r"gone.txt: text cannot be read: No such file"):
        TextSource([tmp_path / "gone.txt"], world.encoding)
