"""A small world to build from: images of one colour each, questions about them, text, and pictures to hide."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.long_context.budget import TokenBudget
from megatron_v2pe.workshop.long_context.image_pool import ImagePool
from megatron_v2pe.workshop.long_context.pipeline import Encoding
from megatron_v2pe.workshop.long_context.text_source import TextSource
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for

WORDS = "a red square is left of the blue circle and what do you see in picture one two three yes no".split()
PATCHES = 6
IMAGES = 24


@dataclass(frozen=True)
class World:
    """Files of a test, and what they become."""

    folder: Path
    encoding: Encoding

    @property
    def budget(self) -> TokenBudget:
        return TokenBudget(self.encoding)

    @property
    def datasets(self) -> list[Dataset]:
        return [Dataset("all", str(self.folder / "all.jsonl"), f"{self.folder}/image/")]

    @property
    def pool(self) -> ImagePool:
        return ImagePool(self.datasets, self.encoding)

    @property
    def text(self) -> TextSource:
        return TextSource([self.folder / "text.txt"], self.encoding)

    def lengths(self, data_list: Path) -> list[int]:
        """Tokens of every sample of a data list, as a training run encodes them."""
        config = config_for(
            data_list, max_seq_length=10**7, max_packed_tokens=10**7, num_images_expected=10**6, max_dynamic_patch=99
        )
        encoder = DocumentEncoder(config, self.encoding.tokenizer, FACTS, StridePolicy("v2pe_fix", 2), seed=3)
        [dataset] = read_data_list(data_list)
        return [encoder.document(dataset, line, 0, line).num_tokens for line in range(len(dataset))]


def colour(number: int) -> tuple[int, int, int]:
    """The colour of image `number`; no other has it."""
    return 40 * (number % 5) + 40, 50 * (number // 5) + 20, 255 - 9 * number


def write_text(path: Path, paragraphs: int, seed: int = 0) -> None:
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(8, 40))) + " ." for _ in range(paragraphs)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def line(text: str, answer: str = "yes", **fields: Any) -> str:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return json.dumps({**fields, "conversations": turns})
