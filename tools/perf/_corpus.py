"""A data set in the V2PE-Data layout to measure the data pipeline on: photographs, English text, every sample kind.

Pictures are crops of the two photographs scikit-learn ships, text is that of Python's own documentation, so nothing is
downloaded. A quarter of the samples each: one picture and several turns, eight pictures, text alone, a long text with
ten pictures in it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from PIL import Image

from megatron_v2pe.base.progress import followed
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import SPECIAL

FACTS = ModelFacts(tile_size=448, tokens_per_tile=256)
VOCABULARY = 8000


@dataclass(frozen=True)
class Corpus:
    """Where it is, and how it is encoded."""

    meta: Path
    encoder: DocumentEncoder


def write_corpus(folder: Path, samples: int, pictures: int) -> Corpus:
    """Write a corpus; the same arguments give the same files."""
    (folder / "image").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    words = _text().split()
    _write_pictures(folder / "image", pictures)
    with open(folder / "all.jsonl", "w", encoding="utf-8") as stream:
        for row in _rows(samples, pictures, words):
            stream.write(json.dumps(row) + "\n")
    entry = {
        "root": f"{folder}/image",
        "annotation": f"{folder}/all.jsonl",
        "data_augment": False,
        "repeat_time": 1,
    }
    (folder / "meta.json").write_text(json.dumps({"all": entry}))
    config = DataConfig(
        meta_path=str(folder / "meta.json"), max_seq_length=34000, max_packed_tokens=34000, num_images_expected=135
    )
    tokenizer = _tokenizer(folder / "tokenizer", words)
    return Corpus(folder / "meta.json", DocumentEncoder(config, tokenizer, FACTS, StridePolicy("default"), seed=1))


def _text() -> str:
    from pydoc_data import topics

    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _write_pictures(folder: Path, count: int) -> None:
    from sklearn.datasets import load_sample_image

    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    generator = np.random.default_rng(0)
    for number in followed(range(count), desc="pictures", unit="files"):
        photo = photos[number % 2]
        width, height = int(generator.integers(200, photo.width)), int(generator.integers(200, photo.height))
        left, top = int(generator.integers(photo.width - width + 1)), int(generator.integers(photo.height - height + 1))
        scale = float(generator.uniform(1.2, 2.0))
        crop = photo.crop((left, top, left + width, top + height))
        crop.resize((int(width * scale), int(height * scale))).save(folder / f"{number}.jpg", quality=90)


def _rows(samples: int, pictures: int, words: list[str]) -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(1)

    def text(count: int) -> str:
        start = int(generator.integers(len(words) - count))
        return " ".join(words[start : start + count])

    def names(count: int) -> list[str]:
        return [f"{number}.jpg" for number in generator.integers(pictures, size=count)]

    for number in range(samples):
        if number % 4 == 0:
            turns = [text(20 if turn % 2 == 0 else 40) for turn in range(8)]
            yield {"image": names(1)[0], "conversations": _turns(turns)}
        elif number % 4 == 1:
            question = "\n".join(f"Image-{i + 1}: <image>" for i in range(8)) + "\n" + text(30)
            yield {"image": names(8), "conversations": _turns([question, text(20)])}
        elif number % 4 == 2:
            yield {"conversations": _turns([text(100), text(200), text(50), text(100)])}
        else:
            parts = [text(250) + "\n<image>\n" for _ in range(10)]
            yield {"image": names(10), "conversations": _turns(["".join(parts) + text(20), text(5)])}


def _turns(texts: list[str]) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def _tokenizer(folder: Path, words: list[str]) -> Tokenizer:
    model = io.BytesIO()
    sentences = (" ".join(words[start : start + 50]) for start in range(0, len(words), 50))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    added = {name: VOCABULARY + number for number, name in enumerate(SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return Tokenizer.from_folder(folder)
