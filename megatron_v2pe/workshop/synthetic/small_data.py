"""A small tokenizer, a small checkpoint with it, and a small data set in the V2PE-Data layout, for tests."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from PIL import Image

from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.encode import ModelFacts
from megatron_v2pe.data.tokenizer import Tokenizer

TEXT = "a red square is left of the blue circle and what do you see in picture one two three yes no 1 2 3 . ? , \n"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
FACTS = ModelFacts(tile_size=28, tokens_per_tile=4)


def write_tokenizer(folder: Path) -> Tokenizer:
    """Train a tokenizer of about 330 tokens into `folder`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    size = len(Tokenizer(folder / "tokenizer.model", {}))
    (folder / "added_tokens.json").write_text(json.dumps({name: size + i for i, name in enumerate(SPECIAL)}))
    return Tokenizer.from_folder(folder)


def write_checkpoint_copy(source: Path, target: Path, **changes: Any) -> Path:
    """Copy an HF checkpoint, give it the small tokenizer, and return its folder.

    Args:
        source: the checkpoint, for instance the reference's tiny one.
        target: the copy, not there yet.
        changes: fields of `config.json` that differ in the copy.
    """
    shutil.copytree(source, target)
    if changes:
        path = target / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_tokenizer(target)
    return target


def write_dataset(folder: Path, lines: int = 23, **entry: Any) -> Path:
    """Write a data list of single-image, multi-image and text-only samples; return its path."""
    (folder / "image").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(6):
        width, height = (40 + 30 * number, 90 - 10 * number)
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image" / f"{number}.png")
    rows = []
    for number in range(lines):
        answer = {"from": "gpt", "value": f"answer {number} " + "yes " * (number % 7)}
        if number % 3 == 0:
            row = {"image": f"{number % 6}.png", "conversations": [_ask("what do you see"), answer]}
        elif number % 3 == 1:
            names = [f"{(number + i) % 6}.png" for i in range(2)]
            row = {"image": names, "conversations": [_ask("one <image>\ntwo <image>\n?"), answer]}
        else:
            row = {"conversations": [_ask(f"question {number}"), answer, _ask("and"), answer]}
        rows.append(json.dumps(row))
    (folder / "all.jsonl").write_text("\n".join(rows) + "\n")
    entry = {"annotation": str(folder / "all.jsonl"), "root": str(folder / "image"), "data_augment": True, **entry}
    (folder / "meta.json").write_text(json.dumps({"all": {"repeat_time": 1, **entry}}))
    return folder / "meta.json"


def _ask(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def config_for(meta: Path, **changes: Any) -> DataConfig:
    """Return settings that suit the small data set."""
    settings: dict[str, Any] = dict(
        template="internlm2-chat",
        max_seq_length=400,
        max_packed_tokens=700,
        num_images_expected=20,
        max_dynamic_patch=6,
    )
    return DataConfig(meta_path=str(meta), **{**settings, "max_buffer_size": 4, **changes})
