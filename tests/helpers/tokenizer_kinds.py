"""A small tokenizer of every kind in the layouts of published checkpoints, and texts to compare tokenizers on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from megatron_v2pe.workshop.synthetic.library_tokenizers import (
    FILES,
    write_byte_level_tokenizer,
    write_llama_tokenizer,
)
from megatron_v2pe.workshop.synthetic.tokenizer import write_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog; it's 3:45 p.m., isn't it? We'll see, I'd say (42% sure).",
    "What is in the picture? A small brown dog on the grass. How many people are there? Three.",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
    "请用中文描述这张图片，并给出表情符号。图中有一只橘猫🐱躺在沙发上。",
    "مرحبا بالعالم، كيف حالك اليوم؟ الصورة فيها قطة صغيرة.",
    "नमस्ते दुनिया, यह एक छोटा चित्र है। इसमें कितने लोग हैं?",
    "Привет, мир! Сколько людей на картинке? Трое.",
    "はい、ソファの上の猫です。日本語でも教えて。",
    "def add(left, right):\n    return left + right  # a comment\n\n\nfor i in range(10):\n\tprint(i)\n",
    "Café naïve déjà vu: Å, ñ, ü, ß, ﬁ and e\u0301 or a\u030a.",
]
MARKS = (
    "<|im_start|> <|im_end|> <img> </img> <IMG_CONTEXT> <|endoftext|> <think> </think> <|user|> <|end|> <|assistant|> "
    "<s> </s> <unk> <|begin_of_text|> <image> <| <|im_ >|"
).split()
_POOLS = (
    "abcdefghijklmnop ABC",
    "0123456789 .,;:'\"!?()[]{}",
    "   \t\n\r\n ",
    "你是由上海人工智能实验室，。",
    "مرحبا بالعالم ",
    "नमस्ते दुनिया ",
    "😀🐱👨\u200d👩\u200d👧🇩🇪",
    "éèñü\u212b e\u0301a\u030a\u212a\u2126\ufb01",
    "日本語ひらがな",
    "x_1 == 'it's' += I'LL we'Ve\n    ",
    "\u3000\u00a0\u2003\u200b\ufeff\x00\x1c\x1f\x85\u2028",
)
KINDS: dict[str, Callable[[Path], int]] = {
    "qwen2": lambda folder: write_byte_level_tokenizer(folder, TEXTS, 500),
    "qwen2, tokenizer.json": lambda folder: write_byte_level_tokenizer(folder, TEXTS, 500, files=["tokenizer.json"]),
    "qwen3": lambda folder: write_byte_level_tokenizer(folder, TEXTS, 500, kind="qwen3", files=FILES),
    "qwen3, all files": lambda folder: write_byte_level_tokenizer(
        folder, TEXTS, 500, kind="qwen3", files=(*FILES, "added_tokens.json", "tokenizer.json")
    ),
    "llama3": lambda folder: write_byte_level_tokenizer(folder, TEXTS, 500, kind="llama3"),
    "llama": lambda folder: write_llama_tokenizer(folder, TEXTS, 500),
    "llama, legacy": lambda folder: write_llama_tokenizer(folder, TEXTS, 500, legacy=True),
    "phi3": lambda folder: write_llama_tokenizer(folder, TEXTS, 500, phi3=True),
}
"""Kinds that transformers opens without code of the checkpoint: a name, and what writes such a folder."""


def write_internlm2(folder: Path) -> int:
    """Write InternLM2's kind, which transformers knows by code of the checkpoint alone."""
    return write_tokenizer(folder, TEXTS, 500)


def texts(count: int, seed: int = 1) -> list[str]:
    """Return made-up texts: several scripts, white space of every kind, digits, code, special tokens and parts of them.

    The first ones are those the tokenizers were trained on, and the empty text.
    """
    rng = random.Random(seed)
    made = ["", *TEXTS, " ", "\n", " a", "a ", "  a", "\n\n a", *MARKS]
    while len(made) < count:
        made.append("".join(_part(rng) for _ in range(rng.randint(1, 12))))
    return made[:count]


def _part(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(MARKS)
    if kind < 0.5:
        text = rng.choice(TEXTS)
        begin = rng.randrange(len(text))
        return text[begin : begin + rng.randint(1, 80)]
    pool = rng.choice(_POOLS)
    return "".join(rng.choice(pool) for _ in range(rng.randint(1, 8)))
